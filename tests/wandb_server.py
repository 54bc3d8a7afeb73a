"""A minimal W&B server: enough for the client to upload and resume runs, online and by `wandb sync`."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

EMAIL = "someone@example.org"
"""E-mail address of the account."""


@dataclass
class Bucket:
    """A run, as W&B calls it here."""

    name: str | None = None
    config: str = "{}"
    lines: dict[str, list[str]] = field(default_factory=dict)
    """Lines of each streamed file: history, events, summary."""
    exit_codes: list[int] = field(default_factory=list)
    preempting: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """The logged rows."""
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        """The newest value of each metric."""
        return dict(json.loads(self.lines["wandb-summary.json"][-1]))

    @property
    def text(self) -> str:
        """All that was logged and set, without the client's own facts about the machine."""
        config = {key: value for key, value in json.loads(self.config).items() if key != "_wandb"}
        return json.dumps([self.name, config, self.history, self.summary])

    def facts(self, name: str) -> dict[str, Any]:
        """Return what the client may query of a run."""
        history, events = (self.lines.get(f"wandb-{kind}.jsonl", []) for kind in ("history", "events"))
        return {
            "id": name,
            "name": name,
            "displayName": self.name,
            "config": self.config,
            "summaryMetrics": self.lines.get("wandb-summary.json", ["{}"])[-1],
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "logLineCount": 0,
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(events[-1:]),
            "tags": [],
            "notes": None,
            "wandbConfig": '{"t": 1}',
            "project": {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}},
        }


@dataclass
class Server:
    """The server's address, its runs by name, and the bodies of all requests."""

    url: str
    buckets: dict[str, Bucket] = field(default_factory=dict)
    received: list[bytes] = field(default_factory=list)

    def answer(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request."""
        if path.endswith("file_stream"):
            return self._stream(path.split("/")[-2], request)
        query, variables = request["query"], request.get("variables", {})
        if "viewer" in query:
            viewer = {"id": "v", "entity": "entity", "username": "u", "email": EMAIL, "flags": "{}"}
            return {"viewer": {**viewer, "teams": {"edges": []}}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": []}}
        if "RunResumeStatus" in query:
            bucket = self.buckets.get(variables["name"])
            facts = bucket.facts(variables["name"]) if bucket else None
            return {"model": {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}, "bucket": facts}}
        if "upsertBucket" in query:
            is_new = variables["name"] not in self.buckets
            bucket = self.buckets.setdefault(variables["name"], Bucket())
            bucket.name = variables.get("displayName") or bucket.name
            bucket.config = variables.get("config") or bucket.config
            return {"upsertBucket": {"bucket": bucket.facts(variables["name"]), "inserted": is_new}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/file/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if "RunUploadUrls" in query:  # by `wandb sync` before 0.20
            nodes = [{"name": name, "url": f"{self.url}/file/{name}", "updatedAt": None} for name in variables["files"]]
            urls = {"uploadHeaders": [], "edges": [{"node": node} for node in nodes]}
            return {"model": {"bucket": {"id": "b", "files": urls}}}
        if "__type" in query:  # clients before 0.20 ask which fields the server knows
            return {name: {"fields": []} for name in re.findall(r"(\w+): __type", query)}
        if "RunStoppedStatus" in query:
            return {"project": {"run": {"stopped": False}}}
        if "OrganizationCoreWeaveOrganizationID" in query:
            return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}
        raise NotImplementedError(query)

    def _stream(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        bucket = self.buckets[name]
        for file, part in (request.get("files") or {}).items():
            bucket.lines.setdefault(file, [])[part["offset"] :] = part["content"]
        if request.get("complete"):
            bucket.exit_codes.append(request["exitcode"])
        bucket.preempting = bucket.preempting or bool(request.get("preempting"))
        return {}


@contextmanager
def serve() -> Iterator[Server]:
    """Run a server for as long as the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self._read()
            is_json = self.headers["Content-Type"] == "application/json"  # other bodies are telemetry
            answer = server.answer(self.path, json.loads(body)) if is_json else {}
            self._reply(json.dumps({"data": answer} if self.path == "/graphql" else answer).encode())

        def do_PUT(self) -> None:
            self._read()
            self._reply(b"")

        def _read(self) -> bytes:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.received.append(body)
            return body

        def _reply(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_address[1]}")
        Thread(target=http.serve_forever, daemon=True).start()
        yield server
        http.shutdown()
