"""One pipeline's parameters for another: said once, they have the same names, types, defaults and words in both."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from kfp.dsl.graph_component import GraphComponent


def with_parameters_of(
    pipeline: GraphComponent, *, instead_of: str, parameter: inspect.Parameter, description: str
) -> Callable[[Callable[[Mapping[str, Any]], Any]], Callable[..., Any]]:
    """Return a decorator that gives a function the parameters of ``pipeline``, one of them replaced.

    The function gets them as one mapping, by name. kfp reads names, types and defaults from the signature and the
    descriptions from the docstring; both are put together here.

    Args:
        pipeline: has the parameters, each described in one line.
        instead_of: the one that the function does not have.
        parameter: what stands in its place.
        description: of that.
    """
    original = inspect.signature(pipeline.pipeline_func)
    signature = inspect.Signature(
        [parameter if each.name == instead_of else each for each in original.parameters.values()],
        return_annotation=original.return_annotation,
    )
    descriptions = re.sub(
        rf"^(\s+){instead_of}: .*$",
        lambda line: f"{line[1]}{parameter.name}: {description}",
        (inspect.getdoc(pipeline.pipeline_func) or "").partition("\n\n")[2],
        flags=re.MULTILINE,
    )

    def decorate(define: Callable[[Mapping[str, Any]], Any]) -> Callable[..., Any]:
        @functools.wraps(define)
        def pipeline_function(*arguments: Any) -> Any:
            return define(signature.bind(*arguments).arguments)

        pipeline_function.__signature__ = signature  # type: ignore[attr-defined]
        pipeline_function.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
        pipeline_function.__doc__ = f"{inspect.getdoc(define)}\n\n{descriptions}"
        return pipeline_function

    return decorate
