"""What ExecuTorch's runtime does to the process that it is loaded into."""

from __future__ import annotations

import subprocess
import sys


def test_the_pool_of_threads_is_made_without_a_word() -> None:
    """cpuinfo complains on virtual machines while the pool is made; afterwards nobody is the first to ask for it."""
    code = (
        "import os\n"
        "from drawplate.backends.xnnpack import executorch_adapter\n"
        "library = executorch_adapter.runtime()\n"
        "print(library._threadpool_get_thread_count() > 0, flush=True)\n"
        "os.write(2, b'heard')\n"
    )
    command = [sys.executable, "-P", "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "heard")
