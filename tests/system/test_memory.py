"""What a process says of its memory is its own."""

import subprocess
import sys

CHILD = """
import os
from clprompt.system.memory import peak_memory
print(peak_memory(), int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""
PARENT = f"""
import subprocess, sys
held = bytearray(300 * 2**20)
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
"""


def test_a_process_has_its_own_peak_memory_whatever_its_parent_holds():
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=True)
    peak, resident = map(int, done.stdout.split())
    assert resident / 2 < peak < resident + 100 * 2**20


AGAIN = """
from clprompt.system.memory import forget_peak, peak_memory
held = bytearray(300 * 2**20)
before = peak_memory()
del held
forget_peak()
print(before, peak_memory())
"""


def test_what_came_before_is_no_part_of_a_peak_that_is_counted_anew():
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before - after > 200 * 2**20
