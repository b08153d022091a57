# Reads rendered charts and compares every object, strictly, with the schemas of several Kubernetes versions:
# `VERSION,VERSION FILE…`. Writes one line of JSON for each file: its objects, what is wrong, and kinds without a schema.
import json
import sys
import warnings

import kubernetes_validate
import yaml

# The C loader reads the same YAML 1.1 as kubectl's, where a bare `y` is true.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Once(LOADER):
    """Takes no key twice in one mapping, which kubectl does and tools in between do not."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def check(thing, versions, seen):
    """Violations of one object; the same object is checked once."""
    key = json.dumps(thing, sort_keys=True)
    if key not in seen:
        found, unknown = [], False
        for version in versions:
            try:
                kubernetes_validate.validate(thing, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                place = ".".join(str(part) for part in error.path)
                found.append(f"{version}: {place}: {error.message}")
            except kubernetes_validate.SchemaNotFoundError:
                unknown = True
        seen[key] = (found, unknown)
    return seen[key]


def main():
    warnings.simplefilter("ignore")
    versions = sys.argv[1].split(",")
    seen = {}
    for name in sys.argv[2:]:
        with open(name, encoding="utf-8") as file:
            things = [thing for thing in yaml.load_all(file, Once) if thing]
        violations, without = [], set()
        for thing in things:
            found, unknown = check(thing, versions, seen)
            label = f"{thing['kind']}/{thing['metadata']['name']}"
            violations += [f"{label}: {text}" for text in found]
            if unknown:
                without.add(thing["kind"])
        print(json.dumps({"objects": things, "violations": violations, "without_schema": sorted(without)}))


main()
