"""Checks built manifests against the schemas that Kubernetes publishes.

    python3 tests/manifests/schemas.py FILE...

This needs the package kubernetes-validate. Each document is checked against the newest version of
Kubernetes that the package contains, and against the version three releases before it. A document
must have no unknown field, no duplicate field, and nothing that the schema or the API calls
deprecated.
"""

import json
import re
import sys
from importlib import resources

import kubernetes_validate
import yaml
from kubernetes_validate.utils import all_versions

# Custom resources, whose schemas come with their operators instead of Kubernetes.
CUSTOM = {"monitoring.coreos.com/v1", "keda.sh/v1alpha1"}

# API stability: stable versions stay, others may be removed.
STABLE = re.compile(r"^([a-z0-9.]+/)?v[0-9]+$")

DEPRECATED = re.compile(r"\bdeprecated\b", re.IGNORECASE)


class Loader(yaml.SafeLoader):
    """Rejects a duplicate key. Otherwise its last value would be used."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate keys: {', '.join(sorted(twice))}", node.start_mark
            )
        return super().construct_mapping(node, deep)


class Schemas:
    """The strict schemas of one version."""

    def __init__(self, version):
        tree = resources.files("kubernetes_validate") / "kubernetes-json-schema"
        self.directory = tree / f"v{version}-local-strict"
        self.definitions = self.read("_definitions.json")["$defs"]

    def read(self, name):
        return json.loads((self.directory / name).read_text())

    def of(self, document):
        group, _, version = document["apiVersion"].rpartition("/")
        group = group.split(".")[0]
        kind = document["kind"].lower()
        return self.read("-".join(part for part in (kind, group, version) if part) + ".json")

    def resolve(self, schema):
        while "$ref" in schema:
            schema = self.definitions[schema["$ref"].rpartition("/")[2]]
        return schema

    def deprecated(self, value, schema, path=""):
        """The paths in a document that its schema calls deprecated."""
        said = DEPRECATED.search(schema.get("description", ""))
        schema = self.resolve(schema)
        if said or DEPRECATED.search(schema.get("description", "")):
            yield path or "the kind"
        if isinstance(value, dict):
            fields = schema.get("properties", {})
            for name, inner in value.items():
                rest = schema.get("additionalProperties")
                of_field = fields.get(name) or (rest if isinstance(rest, dict) else {})
                yield from self.deprecated(inner, of_field, f"{path}.{name}")
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                yield from self.deprecated(inner, schema.get("items", {}), f"{path}[{index}]")


def faults(document, version):
    if not STABLE.match(document["apiVersion"]):
        yield f"{document['apiVersion']} is not stable"
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"
        return
    except kubernetes_validate.SchemaNotFoundError as error:
        yield error.message
        return
    schemas = Schemas(version)
    for path in schemas.deprecated(document, schemas.of(document)):
        yield f"{path} is deprecated"


def main(files):
    # Each version is listed twice, the second time for its strict schema.
    versions = list(dict.fromkeys(all_versions()))
    versions = [versions[-1], versions[-4]]
    failed, checked = False, 0
    for file in files:
        with open(file) as text:
            documents = [document for document in yaml.load_all(text, Loader) if document]
        for document in documents:
            if document["apiVersion"] in CUSTOM:
                continue
            checked += 1
            for version in versions:
                for fault in faults(document, version):
                    failed = True
                    name = f"{document['kind']}/{document['metadata']['name']}"
                    print(f"{file}: {name}, Kubernetes {version}: {fault}", file=sys.stderr)
    if not checked:
        sys.exit("no document to check; expected files built by `cargo test --test manifests`")
    print(f"{checked} documents, Kubernetes {' and '.join(versions)}")
    sys.exit(failed)


main(sys.argv[1:])
