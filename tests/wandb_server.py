"""As much of a W&B server as the client wants: it takes runs, and tells how far they are."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Bucket:
    """A run, as W&B calls it here."""

    name: str | None = None
    config: str = "{}"
    lines: dict[str, list[str]] = field(default_factory=dict)
    """Of each file that is streamed: history, events, summary."""
    exit_codes: list[int] = field(default_factory=list)
    preempting: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged."""
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        """The newest value of everything."""
        return dict(json.loads(self.lines["wandb-summary.json"][-1]))

    def facts(self, name: str) -> dict[str, Any]:
        """What the client may ask of a run."""
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
    """The server's address, and its runs by name."""

    url: str
    buckets: dict[str, Bucket] = field(default_factory=dict)

    def answer(self, path: str, told: dict[str, Any]) -> dict[str, Any]:
        """Answer a request."""
        if path.endswith("file_stream"):
            return self._stream(path.split("/")[-2], told)
        query, variables = told["query"], told.get("variables", {})
        if "viewer" in query:
            return {"viewer": {"id": "v", "entity": "entity", "username": "u", "flags": "{}", "teams": {"edges": []}}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": []}}
        if "RunResumeStatus" in query:
            found = self.buckets.get(variables["name"])
            bucket = found and found.facts(variables["name"])
            return {"model": {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}, "bucket": bucket}}
        if "upsertBucket" in query:
            new = variables["name"] not in self.buckets
            bucket = self.buckets.setdefault(variables["name"], Bucket())
            bucket.name = variables.get("displayName") or bucket.name
            bucket.config = variables.get("config") or bucket.config
            return {"upsertBucket": {"bucket": bucket.facts(variables["name"]), "inserted": new}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/file/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        raise NotImplementedError(query)

    def _stream(self, name: str, told: dict[str, Any]) -> dict[str, Any]:
        bucket = self.buckets[name]
        for file, part in (told.get("files") or {}).items():
            bucket.lines.setdefault(file, [])[part["offset"] :] = part["content"]
        if told.get("complete"):
            bucket.exit_codes.append(told["exitcode"])
        bucket.preempting = bucket.preempting or bool(told.get("preempting"))
        return {}


@contextmanager
def serve() -> Iterator[Server]:
    """Serve for as long as the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_json = self.headers["Content-Type"] == "application/json"  # what is not is the client's word of itself
            answer = server.answer(self.path, json.loads(body)) if is_json else {}
            self._reply(json.dumps({"data": answer} if self.path == "/graphql" else answer).encode())

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._reply(b"")

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
