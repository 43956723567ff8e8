"""What stands in the place of Python in tests of commands that start commands: a fork of the warm process.

``python.py ... -m clprompt WORDS`` asks the process at ``$WARM_SOCKET`` for a fork of itself with the
streams, the folder, the environment and the words of this one, hands on the signals that this one gets, and
ends as that one ends. It imports next to nothing, so it starts in an instant.
"""

import json
import os
import signal
import socket
import sys

words = sys.argv[sys.argv.index("clprompt") + 1 :]
connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["WARM_SOCKET"])
request = {"argv": words, "folder": os.getcwd(), "environment": dict(os.environ)}
signals = (signal.SIGINT, signal.SIGTERM)
signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until there is somebody to hand them to
socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
answers = connection.makefile()
process = int(answers.readline())
for number in signals:
    signal.signal(number, lambda number, _: os.kill(process, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
