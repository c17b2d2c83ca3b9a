"""The errors of an API server, as the Status objects that it answers with."""

from typing import Any

GROUPS = {
    "trainjobs": "trainer.kubeflow.org",
    "trainingruntimes": "trainer.kubeflow.org",
    "clustertrainingruntimes": "trainer.kubeflow.org",
    "customresourcedefinitions": "apiextensions.k8s.io",
}


class ApiError(Exception):
    """An answer that is not a success."""

    def __init__(self, code: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.headers: dict[str, str] = {}
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": details or {},
            "code": code,
        }


def full_name(resource: str) -> str:
    """Return a resource with its group, as messages name it."""
    return f"{resource}.{GROUPS[resource]}" if resource in GROUPS else resource


def not_found(resource: str, name: str) -> ApiError:
    """404: no such object."""
    details = {"name": name, "group": GROUPS.get(resource, ""), "kind": resource}
    return ApiError(404, "NotFound", f'{full_name(resource)} "{name}" not found', details)


def no_such_path() -> ApiError:
    """404: no such resource."""
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def already_exists(resource: str, name: str) -> ApiError:
    """409: the name is taken."""
    details = {"name": name, "group": GROUPS.get(resource, ""), "kind": resource}
    return ApiError(409, "AlreadyExists", f'{full_name(resource)} "{name}" already exists', details)


def other_uid(resource: str, name: str, asked: str, found: str) -> ApiError:
    """409: a precondition does not hold."""
    message = f'Operation cannot be fulfilled on {full_name(resource)} "{name}": Precondition failed: UID in '
    message += f"precondition: {asked}, UID in object meta: {found}"
    return ApiError(409, "Conflict", message, {"name": name, "group": GROUPS.get(resource, ""), "kind": resource})


def expired(version: int, oldest: int) -> ApiError:
    """410: a watch asks for changes that are forgotten."""
    return ApiError(410, "Expired", f"too old resource version: {version} ({oldest})")


def unauthorized() -> ApiError:
    """401: no token, or one that does not hold any more."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(user: str, verb: str, resource: str, namespace: str, name: str) -> ApiError:
    """403: no Role allows this."""
    scope = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    plain = resource.partition("/")[0]
    message = (
        f'{full_name(plain)}{f" {chr(34)}{name}{chr(34)}" if name else ""} is forbidden: User "{user}" cannot {verb} '
        f'resource "{resource}" in API group "{GROUPS.get(plain, "")}" {scope}'
    )
    return ApiError(403, "Forbidden", message, {"name": name, "group": GROUPS.get(plain, ""), "kind": plain})


def invalid(kind: str, name: str, causes: list[dict[str, str]]) -> ApiError:
    """422: the object breaks its schema."""
    said = ", ".join(f"{cause['field']}: {cause['message']}" for cause in causes)
    details = {"name": name, "group": "trainer.kubeflow.org", "kind": kind, "causes": causes}
    return ApiError(422, "Invalid", f'{kind}.trainer.kubeflow.org "{name}" is invalid: {said}', details)


def strict_decoding(fields: list[str]) -> ApiError:
    """400: the client asked that fields without a place in the schema are refused."""
    said = ", ".join(f'unknown field "{field}"' for field in fields)
    handled = 'TrainJob in version "v1alpha1" cannot be handled as a TrainJob'
    return ApiError(400, "BadRequest", f"{handled}: strict decoding error: {said}")


def denied(message: str) -> ApiError:
    """403: the admission webhook of Kubeflow Trainer refuses the object."""
    webhook = "validator.trainjob.trainer.kubeflow.org"
    return ApiError(403, "Forbidden", f'admission webhook "{webhook}" denied the request: {message}')
