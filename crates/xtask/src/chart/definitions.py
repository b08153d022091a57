# Definitions of other projects' objects, made of the Python models that packages have of them: `define KIND=MODELS` prints that
# of a kind as a cluster has it; `check OBJECTS KIND=MODELS…` compares a JSON list of objects with it, strictly, and prints a
# JSON list: for each what is wrong with it, an empty text where nothing is. The models want a newer Python than ours, so they
# are read and not run.
import ast
import json
import re
import sys

import jsonschema

# What is not a class of the models. `ObjectMeta` is of every object, and Kubernetes defines it.
PLAIN = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "dict": {"type": "object"},
    "Any": {},
    "AwareDatetime": {"type": "string"},
    "ObjectMeta": {"type": "object"},
}
LIMITS = {
    "ge": ("minimum",),
    "le": ("maximum",),
    "pattern": ("pattern",),
    # Of a text or of a list: the other word does nothing.
    "min_length": ("minLength", "minItems"),
    "max_length": ("maxLength", "maxItems"),
}


class Models:
    def __init__(self, path):
        self.path = path
        with open(path, encoding="utf-8") as source:
            # Parsed when asked for, since they are many.
            classes = re.split(r"^(?=class (\w+)\()", source.read(), flags=re.MULTILINE)
        self.classes = dict(zip(classes[1::2], classes[2::2]))

    def fields(self, name):
        """Name → annotation and value of a class."""
        body = ast.parse(self.classes[name]).body[0].body
        return {one.target.id: (one.annotation, one.value) for one in body if isinstance(one, ast.AnnAssign)}

    def definition(self, kind):
        """What a cluster has where the project is installed."""
        fields = self.fields(kind)
        said = ast.literal_eval(fields["__cloudcoil_api__"][1])
        group, version = ast.literal_eval(fields["api_version"][1]).split("/")
        schema = {"openAPIV3Schema": self.schema(kind)}
        return {
            "metadata": {"name": f"{said['plural']}.{group}"},
            "spec": {
                "group": group,
                "scope": said["scope"],
                "names": {"kind": kind, "plural": said["plural"]},
                "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
            },
        }

    def schema(self, name):
        """Of a class; a definition never goes round in a circle."""
        if name in PLAIN:
            return PLAIN[name]
        fields = {field: of for field, of in self.fields(name).items() if not field.startswith("__")}
        if list(fields) == ["root"]:
            return self.type(fields["root"][0])
        properties, required = {}, []
        for field, (annotation, value) in fields.items():
            schema = self.type(annotation)
            field = schema.pop("alias", field)
            properties[field] = schema
            if value is None:
                required.append(field)
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def type(self, annotation):
        """Of an annotation, with the `alias` that a field has in YAML where it has one."""
        match annotation:
            case ast.Name(id=name):
                return dict(self.schema(name))
            # `None` is of what may be left out; it never stands in an object.
            case ast.BinOp(left=kind, op=ast.BitOr(), right=ast.Constant(value=None)):
                return self.type(kind)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return {"anyOf": [self.type(left), self.type(right)]}
            case ast.Subscript(value=ast.Name(id="list"), slice=item):
                return {"type": "array", "items": self.type(item)}
            case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[ast.Name(id="str"), value])):
                return {"type": "object", "additionalProperties": self.type(value)}
            case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
                values = ast.literal_eval(values)
                return {"enum": list(values) if isinstance(values, tuple) else [values]}
            case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, ast.Call(keywords=words)])):
                schema = self.type(kind)
                for word in words:
                    for key in ("alias",) if word.arg == "alias" else LIMITS[word.arg]:
                        schema[key] = ast.literal_eval(word.value)
                if "(?i)" in schema.get("pattern", ""):
                    # Python wants at the start what Go takes anywhere.
                    schema["pattern"] = "(?i)" + schema["pattern"].replace("(?i)", "")
                return schema
        sys.exit(f"{self.path}: {ast.unparse(annotation)} is not understood: teach it to definitions.py")


def wrong(thing, validators):
    errors = validators[thing["kind"]].iter_errors(thing)
    return "; ".join(f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message}" for error in errors)


def main():
    command, *arguments = sys.argv[1:]
    pairs = [argument.split("=", 1) for argument in arguments if "=" in argument]
    definitions = {kind: Models(path).definition(kind) for kind, path in pairs}
    if command == "define":
        [definition] = definitions.values()
        print(json.dumps(definition))
        return
    validators = {}
    for kind, definition in definitions.items():
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        jsonschema.Draft7Validator.check_schema(schema)
        validators[kind] = jsonschema.Draft7Validator(schema)
    with open(arguments[0], encoding="utf-8") as objects:
        print(json.dumps([wrong(thing, validators) for thing in json.load(objects)]))


main()
