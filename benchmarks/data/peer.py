"""What instructlab-training does with the conversations, in a process of its own and in the peer's environment.

``PYTHON benchmarks/data/peer.py ROWS_FILE FOLDER TOKENIZER``: a script that needs nothing of this project, whose
packages the peer's environment does not have. It measures as :mod:`benchmarks.data.tasks` does.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

PROCESSES = 2
MAX_SEQ_LEN = 4_096


def main() -> None:
    """Process the rows of the file that the command line names."""
    source, folder, tokenizer = sys.argv[1:]
    # An earlier run's rows in the cache would be taken instead of being processed.
    os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
    from instructlab.training.data_process import process_messages_into_input_ids

    output = Path(folder) / "output"
    start = time.perf_counter()
    process_messages_into_input_ids(
        data_path=source,
        data_output_path=str(output),
        max_seq_len=MAX_SEQ_LEN,
        model_path=tokenizer,
        num_cpu_procs=PROCESSES,
    )
    seconds = time.perf_counter() - start
    with (output / "data.jsonl").open("rb") as lines:
        rows = sum(1 for _ in lines)
    # Linux's own record of this process, as in benchmarks.data.worker.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    measured = {"rows": rows, "seconds": seconds, "main_peak_bytes": int(peak[1]) * 1024 if peak else 0}
    (Path(folder) / "measured.json").write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
