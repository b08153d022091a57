# A stand-in for a Kubernetes API server, as much of one as `helm install`, `upgrade`, `rollback`, `test` and `uninstall`
# need: discovery, objects in memory, server-side apply as a deep merge, selectors, and strict validation of what is
# written. No controllers: a pod that is created has succeeded, which is how `helm test` ends.
# `api.py VERSION`; the first line it prints is its port.
import base64
import copy
import json
import re
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml

# Group and version → plural → kind. Everything but these two lives in a namespace.
CLUSTERS = {"namespaces", "customresourcedefinitions"}
KINDS = {
    "v1": {"namespaces": "Namespace", "pods": "Pod", "services": "Service", "secrets": "Secret", "configmaps": "ConfigMap",
           "serviceaccounts": "ServiceAccount", "persistentvolumeclaims": "PersistentVolumeClaim"},
    "apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "apiextensions.k8s.io/v1": {"customresourcedefinitions": "CustomResourceDefinition"},
}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
PATH = re.compile(r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))/(?:namespaces/(?P<namespace>[^/]+)/)?"
                  r"(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>log|status))?$")


def fields(data):
    """The fields of a protobuf message: number → list of values."""
    found, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = number()
        if tag & 7 == 2:
            length = number()
            value, at = data[at:at + length], at + length
        elif tag & 7 == 0:
            value = number()
        else:
            width = 8 if tag & 7 == 1 else 4
            value, at = data[at:at + width], at + width
        found.setdefault(tag >> 3, []).append(value)
    return found


def entries(messages):
    """A protobuf map of texts to bytes."""
    pairs = [fields(message) for message in messages]
    return {pair[1][0].decode(): pair.get(2, [b""])[0] for pair in pairs}


def from_protobuf(data):
    """helm sends the secrets in which it keeps releases as protobuf: runtime.Unknown, then Secret."""
    unknown = fields(data[4:])
    kind = fields(unknown[1][0])[2][0].decode()
    if kind == "DeleteOptions":
        return {}
    if kind != "Secret":
        raise ValueError(f"protobuf of a {kind}")
    secret = fields(unknown[2][0])
    meta = fields(secret[1][0])
    labels = {key: value.decode() for key, value in entries(meta.get(11, [])).items()}
    values = {key: base64.b64encode(value).decode() for key, value in entries(secret.get(2, [])).items()}
    return {"metadata": {"name": meta[1][0].decode(), "labels": labels}, "data": values,
            "type": secret.get(3, [b"Opaque"])[0].decode()}


def merged(old, new):
    """Apply: tables grow together, anything else is replaced."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}
    return new


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


class Refused(Exception):
    def __init__(self, code, reason, message):
        super().__init__(message)
        self.status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
                       "message": message}


class Store:
    """Objects by (group, plural, namespace, name)."""

    def __init__(self, version):
        self.version = version
        self.lock = threading.Lock()
        self.revision = 1
        self.objects = {}

    def read(self, key, query):
        group, plural, namespace, name = key
        if name:
            if key not in self.objects:
                raise Refused(404, "NotFound", f'{plural} "{name}" not found')
            return self.objects[key]
        items = [thing for (g, p, n, _), thing in sorted(self.objects.items())
                 if (g, p) == (group, plural) and namespace in (None, n) and self.selected(thing, query)]
        return {"kind": KINDS[group][plural] + "List", "apiVersion": group, "items": items,
                "metadata": {"resourceVersion": str(self.revision)}}

    @staticmethod
    def selected(thing, query):
        labels = thing["metadata"].get("labels", {})
        for term in filter(None, query.get("labelSelector", [""])[0].split(",")):
            key, unequal, value = re.match(r"^([^!=]+)(!?)==?(.*)$", term).groups()
            if (labels.get(key) == value) == bool(unequal):
                return False
        return True

    def write(self, method, key, thing, query):
        group, plural, namespace, name = key
        name = name or thing["metadata"]["name"]
        key = (group, plural, namespace, name)
        old = self.objects.get(key)
        if method == "POST" and old:
            raise Refused(409, "AlreadyExists", f'{plural} "{name}" already exists')
        if method == "PUT" and not old:
            raise Refused(404, "NotFound", f'{plural} "{name}" not found')
        thing = without_nulls(merged(copy.deepcopy(old), thing) if method == "PATCH" and old else thing)
        thing.update(apiVersion=group, kind=KINDS[group][plural])
        self.validate(thing, name)
        self.revision += 1
        meta = thing["metadata"]
        meta.setdefault("uid", str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        meta.update(resourceVersion=str(self.revision))
        if namespace:
            meta.update(namespace=namespace)
        if plural == "pods":
            thing["status"] = {"phase": "Succeeded"}
        if "dryRun" not in query:
            self.objects[key] = thing
        return thing, 200 if old else 201

    def validate(self, thing, name):
        try:
            kubernetes_validate.validate(json.loads(json.dumps(thing)), self.version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = ".".join(str(part) for part in error.path)
            raise Refused(422, "Invalid", f'{thing["kind"]} "{name}" is invalid: {place}: {error.message}') from error


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, thing, kind=None):
        body = thing.encode() if isinstance(thing, str) else json.dumps(thing).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind or ("text/plain" if isinstance(thing, str) else "application/json"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if data.startswith(b"k8s\0"):
            return from_protobuf(data)
        return yaml.safe_load(data) if data else {}

    def discovery(self, path):
        if path == "/version":
            major, minor = self.server.store.version.split(".")
            return {"major": major, "minor": minor, "gitVersion": f"v{major}.{minor}.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [name.split("/") for name in KINDS if "/" in name]
            each = [{"groupVersion": f"{group}/{version}", "version": version} for group, version in groups]
            return {"kind": "APIGroupList", "apiVersion": "v1",
                    "groups": [{"name": group, "versions": [one], "preferredVersion": one} for (group, _), one in zip(groups, each)]}
        if path == "/openapi/v3":
            place = {name: "api/v1" if name == "v1" else f"apis/{name}" for name in KINDS}
            return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in place.values()}}
        if path.startswith("/openapi/v3/"):
            return self.openapi(re.sub("^apis?/", "", path.removeprefix("/openapi/v3/")))
        group = re.sub("^/apis?/", "", path)
        if group in KINDS and path == ("/api/v1" if group == "v1" else f"/apis/{group}"):
            resources = [{"name": plural, "singularName": kind.lower(), "kind": kind, "verbs": VERBS,
                          "namespaced": plural not in CLUSTERS} for plural, kind in KINDS[group].items()]
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}
        return None

    @staticmethod
    def openapi(group):
        """No schemas; only what tells a client that the server itself validates strictly."""
        version = group.split("/")[-1]
        name = group.removesuffix(version).rstrip("/")
        paths = {}
        for plural, kind in KINDS.get(group, {}).items():
            paths[f"/{plural}/{{name}}"] = {"patch": {
                "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                "responses": {},
                "x-kubernetes-group-version-kind": {"group": name, "version": version, "kind": kind}}}
        return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": "1"}, "paths": paths}

    def handle_request(self):
        url = urlsplit(self.path)
        path, query = url.path.rstrip("/"), parse_qs(url.query)
        thing = self.body()
        found = self.discovery(path)
        if found is not None:
            return self.answer(200, found)
        place = PATH.match(path)
        group = place and (place["core"] or place["group"])
        if not place or place["plural"] not in KINDS.get(group, {}):
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        key = (group, place["plural"], place["namespace"], place["name"])
        store = self.server.store
        with store.lock:
            if self.command == "GET" and place["sub"] == "log":
                return self.answer(200, "no container ran here\n")
            if "sendInitialEvents" in query:
                # As servers from before this way of listing say; the client then lists and watches.
                raise Refused(422, "Invalid", "sendInitialEvents: Forbidden: this server cannot")
            if self.command == "GET" and "watch" in query:
                # Nothing ever changes by itself: there is nothing to tell.
                return self.answer(200, "", "application/json")
            if self.command == "GET":
                return self.answer(200, store.read(key, query))
            if self.command == "DELETE":
                store.read(key, query)
                del store.objects[key]
                return self.answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
            thing, code = store.write(self.command, key, thing, query)
            return self.answer(code, thing)

    def guarded(self):
        try:
            self.handle_request()
        except Refused as refused:
            self.answer(refused.status["code"], refused.status)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = guarded


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        # A client that has heard enough hangs up; anything else is a fault here, and is shown.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


server = Server(("127.0.0.1", 0), Handler)
server.store = Store(sys.argv[1])
print(server.server_address[1], flush=True)
server.serve_forever()
