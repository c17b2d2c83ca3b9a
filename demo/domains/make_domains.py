"""Write the rows and the lm-eval task of every domain: ``python -m demo.domains.make_domains``.

Everything comes from ``demo/sources/domains.json`` and one seed. What it makes is committed, so this is needed only
after a change. It leaves in ``demo/domains/``:

    data/<domain>.jsonl    the conversations to learn
    tasks/<domain>.yaml    the lm-eval task, its questions beside it
"""

from pathlib import Path
from random import Random
from typing import Annotated

import typer

from demo.domains.domains import domain_conversations, domain_questions, read_domains
from demo.task_files import write_json_lines, write_task

FOLDER = Path(__file__).parent
SEED = 20261


def make_domains(output: Annotated[Path, typer.Option(help="Folder to fill.")] = FOLDER) -> None:
    """Write the rows and the task of every domain."""
    for number, domain in enumerate(read_domains()):
        rows = [{"messages": messages} for messages in domain_conversations(domain, Random(SEED + number))]
        write_json_lines(output / "data" / f"{domain.name}.jsonl", rows)
        write_task(output / "tasks", domain.name, domain_questions(domain))


if __name__ == "__main__":
    typer.run(make_domains)
