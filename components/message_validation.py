"""Step 2: every row is checked; valid and new ones go on, invalid ones are quarantined with the reason."""

from kfp import dsl

from components.images import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def message_validation(
    run_id: str,
    data_format: str,
    on_invalid: str,
    max_invalid_fraction: float,
    document_column: str,
    unmask_messages: bool,
    since: str,
    time_column: str,
    max_seq_len: int,
    force: bool,
    base: dsl.Input[dsl.Artifact],
    rows: dsl.Input[dsl.Dataset],
    valid: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> bool:
    """Check every row; ``valid.jsonl``, ``quarantine.jsonl`` and the report go to ``runs/<run_id>/valid``.

    Rows that the run of an ancestor had, trained or held out, are left out, and so are those from before ``since``.

    Args:
        run_id: id of the pipeline run.
        data_format: ``messages``, ``sharegpt``, ``alpaca``, ``prompt_completion``, ``documents``, ``processed``, or
            ``auto`` to take each row for what its keys say.
        on_invalid: ``fail``, or ``drop`` to go on with the valid rows.
        max_invalid_fraction: with ``drop``, the largest share of bad rows that is accepted, 0 to 1.
        document_column: column of the text; used with ``documents`` only.
        unmask_messages: everything but system messages is trained, so a row needs no assistant turn.
        since: time from which on rows are taken, in ISO 8601, or such as ``P7D/now``; empty: of any time.
        time_column: key of a row's time; used with ``since`` only.
        max_seq_len: longest row in tokens; rows that an earlier run dropped are new if it is larger than then.
        force: take the rows that earlier runs were trained on once more; those that they held out stay out.
        base: manifest of what the run starts from: its ancestors' rows are known.
        rows: manifest of the downloaded rows.
        valid: manifest of the valid rows.
        metrics: rows in, valid, quarantined, duplicated, too old, seen in earlier runs.
        report: the findings, and what the rows are like.

    Returns:
        Whether a row is left to train on; if none is, the step has done well all the same.
    """
    import shutil

    from osft.data.files import ROWS_NAME, VALIDATION_PAGE_NAME, VALIDATION_REPORT_NAME
    from osft.data.validation.page import write_validation_page
    from osft.data.validation.validate import validate_dataset
    from osft.logs import configure_logging
    from osft.versions.base_model import BaseModel
    from osft.versions.new_rows import new_rows
    from osft.workspace import Manifest, Workspace, read_json, sha256_of_file

    configure_logging()
    workspace = Workspace.from_environment()
    downloaded = Manifest.load(rows.path)
    start = BaseModel.load(workspace.directory_of(base.path))
    increment = new_rows(
        workspace, start, downloaded, since=since, time_column=time_column, max_seq_len=max_seq_len, force=force
    )
    manifest = workspace.complete(
        run_id,
        "valid",
        inputs={
            "rows": downloaded.fingerprint,
            "data_format": data_format,
            "on_invalid": on_invalid,
            "max_invalid_fraction": max_invalid_fraction,
            "document_column": document_column,
            "unmask_messages": unmask_messages,
            "since": since,
            "time_column": time_column,
            "force": force,
            "seen_rows": [sha256_of_file(file) for file in increment.seen_rows],
            "held_out_rows": [sha256_of_file(file) for file in increment.held_out_rows],
            "too_long_rows": [sha256_of_file(file) for file in increment.too_long_rows],
            "unchanged_since": increment.unchanged_since,
        },
        work=lambda directory: validate_dataset(
            workspace.resolve(downloaded.path) / ROWS_NAME,
            directory,
            data_format=data_format,
            on_invalid=on_invalid,
            max_invalid_fraction=max_invalid_fraction,
            document_column=document_column,
            unmask_messages=unmask_messages,
            increment=increment,
            on_report=lambda checked: write_validation_page(checked, directory / VALIDATION_PAGE_NAME),
        ),
    )
    finished = workspace.resolve(manifest.path)
    counts = read_json(finished / VALIDATION_REPORT_NAME)
    for name in ("rows_in", "rows_valid", "rows_quarantined", "rows_duplicated", "rows_too_old", "rows_seen"):
        metrics.log_metric(name, counts[name])
    valid.metadata.update(path=manifest.path, rows=counts["rows_valid"])
    shutil.copyfile(finished / VALIDATION_PAGE_NAME, report.path)
    manifest.save(valid.path)
    # Without a name of its own: KFP's local runner (2.17) finds no other parameter of a step in a condition.
    return counts["rows_valid"] > 0
