"""What the step's account may do: the Role and ClusterRole of images/manifests, which the server enforces."""

from pathlib import Path

import yaml

MANIFEST = Path(__file__).parents[3] / "images" / "manifests" / "pipeline-runner-rbac.yaml"


class Rights:
    """The rules of the manifest, and which of them were used."""

    def __init__(self) -> None:
        documents = list(yaml.safe_load_all(MANIFEST.read_text()))
        self._rules = [
            (document["kind"] == "ClusterRole", rule)
            for document in documents
            if document["kind"] in ("Role", "ClusterRole")
            for rule in document["rules"]
        ]
        self.used: set[tuple[str, str]] = set()

    @property
    def granted(self) -> set[tuple[str, str]]:
        """Every verb and resource that the manifest grants."""
        return {(verb, name) for _, rule in self._rules for verb in rule["verbs"] for name in rule["resources"]}

    def allow(self, verb: str, group: str, resource: str, namespace: str, name: str) -> bool:
        """Return whether a rule grants this, and remember that it was needed."""
        for is_for_cluster, rule in self._rules:
            if is_for_cluster == bool(namespace) or group not in rule["apiGroups"]:
                continue
            if resource in rule["resources"] and verb in rule["verbs"] and name in rule.get("resourceNames", [name]):
                self.used.add((verb, resource))
                return True
        return False
