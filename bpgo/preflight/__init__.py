"""What a run needs before it starts: files, memory, disk space and time. No model is loaded.

from bpgo import read_config
from bpgo.preflight import preflight

print(preflight(read_config("t2i-flux"), device_bytes=80 * 10**9).text)
"""

from bpgo.preflight.launch import Launch, read_launch
from bpgo.preflight.report import Report, preflight, run

__all__ = ["Launch", "Report", "preflight", "read_launch", "run"]
