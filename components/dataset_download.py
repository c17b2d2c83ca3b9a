"""Step 1: a dataset URI to rows on the workspace."""

from kfp import dsl

from components.images import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def dataset_download(run_id: str, uri: str, date: str, rows: dsl.Output[dsl.Dataset]) -> None:
    """Fetch the dataset and write it as JSON lines to ``runs/<run_id>/raw``; unchanged, it is not fetched again.

    Args:
        run_id: id of the pipeline run.
        uri: ``pvc://``, a path, ``hf://``, ``https://`` or ``s3://``, with or without ``{date:FORMAT}``.
        date: what such a field stands for: a time in ISO 8601 or ``now``, with or without a duration before it.
        rows: manifest of ``rows.jsonl`` and ``source.json``.
    """
    import hashlib

    from osft.data.download.download import download_into_run
    from osft.data.download.links import public_uri
    from osft.data.files import SOURCE_NAME
    from osft.data.increments.times import fill_date
    from osft.logs import configure_logging
    from osft.workspace import Workspace, read_json

    configure_logging()
    workspace = Workspace.from_environment()
    manifest = workspace.complete(
        run_id,
        "raw",
        # A presigned link is a secret: what is stored tells two links apart, and no more.
        inputs={"uri": public_uri(uri), "uri_sha256": hashlib.sha256(uri.encode()).hexdigest(), "date": date},
        work=lambda directory: download_into_run(fill_date(uri, date), directory, workspace),
    )
    source = read_json(workspace.resolve(manifest.path) / SOURCE_NAME)
    rows.metadata.update(path=manifest.path, uri=source["uri"], rows=source["rows"], sha256=source["sha256"])
    manifest.save(rows.path)
