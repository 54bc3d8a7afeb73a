"""Become the given command, with the signals that ask a run to stop blocked: they wait until the run handles them.

Otherwise a signal that arrives while Python and torch are loaded would end the job. With -I -S it starts in no time.
"""

import os
import signal
import sys

if __name__ == "__main__":
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    os.execv(sys.argv[1], sys.argv[1:])
