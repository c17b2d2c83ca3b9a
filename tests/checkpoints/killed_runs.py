"""Runs a training again and again and kills it every time: the test's own process would not survive that.

python tests/checkpoints/killed_runs.py PARAMETERS.json KILLS

Everything is imported once and each attempt is a fork, because an import of torch takes longer than an attempt. Half of
the attempts are killed as they are about to do a file operation in the folder of the checkpoints, most of which belong
to a save, half at a random moment. No attempt does more than a few such operations, so that all of them together do not
come to the end of the training, however fast the machine is. Prints what each attempt came to, one line of JSON.
"""

import json
import os
import random
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from osft import osft
from osft.errors import OsftError

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
LONGEST_SECONDS = 1.2
MOST_OPERATIONS = 50


def kill_at_operation(number: int, folder: Path) -> None:
    """End this process like a kill -9 before its file operation ``number`` in ``folder``."""
    left = number

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in FILE_EVENTS and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def attempt(parameters: dict[str, Any], *, seconds: float | None, operations: int | None) -> int:
    """Call ``osft()`` in a fork, kill it after ``seconds`` or ``operations``, and return how it ended."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            if operations:
                kill_at_operation(operations, Path(parameters["ckpt_output_dir"]) / "checkpoints")
            osft(**parameters)
            code = 0
        except OsftError:
            traceback.print_exc()
        finally:
            # Without what the parent would do at its end.
            os._exit(code)
    has_ended, _, _ = select.select([os.pidfd_open(process)], [], [], seconds)
    if not has_ended:
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main() -> None:
    parameters, kills = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    chance = random.Random(0)
    whole = {**parameters, "ckpt_output_dir": parameters["ckpt_output_dir"] + "-whole", "checkpoint_every_steps": None}
    osft(**whole)
    ends, folder = [], Path(parameters["ckpt_output_dir"]) / "checkpoints"
    for number in range(kills):
        if number % 2:
            code = attempt(parameters, seconds=None, operations=chance.randint(1, MOST_OPERATIONS))
        else:
            code = attempt(parameters, seconds=chance.uniform(0, LONGEST_SECONDS), operations=MOST_OPERATIONS)
        ends.append({"code": code, "left": sorted(path.name for path in folder.glob("*"))})
    ends.append({"code": attempt(parameters, seconds=None, operations=None), "left": []})
    print(json.dumps(ends))  # noqa: T201


if __name__ == "__main__":
    main()
