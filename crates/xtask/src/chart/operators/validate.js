// Compares objects of KEDA, the Prometheus operator and cert-manager with these projects' schemas: `validate.js FILE`, where FILE
// is a JSON list of objects. Prints a JSON list: for each object what is wrong with it, an empty text where nothing is.
"use strict";

const fs = require("node:fs");

const MODELS = {
  Certificate: "@kubernetes-models/cert-manager/cert-manager.io/v1/Certificate",
  PodMonitor: "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor",
  PrometheusRule: "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule",
  ScaledObject: "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject",
};

async function wrong(object) {
  // Some of these packages can only be imported.
  const Model = (await import(MODELS[object.kind]))[object.kind];
  try {
    new Model(object).validate();
    return "";
  } catch (error) {
    return String(error.message || error);
  }
}

async function main() {
  const objects = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
  console.log(JSON.stringify(await Promise.all(objects.map(wrong))));
}

main();
