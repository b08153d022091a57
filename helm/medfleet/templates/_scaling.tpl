{{/* What the workers' autoscalers read: the backlog that ingest exports, which is there when no worker is. */}}

{{/* Seconds of work, or units, for each worker: one worker has `slots` of them in hand at a time. */}}
{{- define "medfleet.backlog.threshold" -}}
{{- $slots := include "medfleet.stage.slots" . | int -}}
{{- if eq .root.Values.autoscaling.metric "seconds" -}}{{ mul $slots .given.scale.targetSeconds }}{{- else -}}{{ $slots }}{{- end -}}
{{- end -}}

{{- define "medfleet.backlog.name" -}}
medfleet_backlog_{{ .root.Values.autoscaling.metric }}
{{- end -}}

{{/* Every replica of ingest reports all of the seconds, one that has just started too few: the maximum counts them once. Of
     the units only the dispatcher knows, and nobody for a moment when it changes: the maximum over a minute bridges that.
     Another release of the namespace may have a pool of the same name; which one a series is of, the pod that it comes from
     says, whoever scrapes it. A pod is called after its Deployment, with one word or two behind. */}}
{{- define "medfleet.backlog.query" -}}
{{- $of := "" -}}
{{- with .root.Values.autoscaling.namespaceLabel -}}{{- $of = printf ",%s=%q" . $.root.Release.Namespace -}}{{- end -}}
{{- with .root.Values.autoscaling.podLabel -}}
{{- $ingest := include "medfleet.name" (dict "root" $.root "component" "ingest") -}}
{{- $of = printf "%s,%s=~%q" $of . (printf "%s-[^-]+(-[^-]+)?" $ingest) -}}
{{- end -}}
{{- range $key, $value := .root.Values.autoscaling.keda.labels -}}{{- $of = printf "%s,%s=%q" $of $key $value -}}{{- end -}}
sum(max by (class) (max_over_time({{ include "medfleet.backlog.name" . }}{stage={{ .stage | quote }},pool={{ .pool | quote }}{{ $of }}}[1m])))
{{- end -}}

{{- define "medfleet.externalMetric" -}}
- type: External
  external:
    metric:
      name: {{ include "medfleet.backlog.name" . }}
      selector:
        matchLabels:
          stage: {{ .stage | quote }}
          pool: {{ .pool | quote }}
          {{- range $key, $value := .root.Values.autoscaling.externalLabels }}
          {{ $key }}: {{ $value | quote }}
          {{- end }}
    target: { type: AverageValue, averageValue: {{ include "medfleet.backlog.threshold" . | quote }} }
{{- end -}}

{{- define "medfleet.scaledObject" -}}
{{- $keda := .root.Values.autoscaling.keda -}}
{{- if not $keda.prometheusAddress -}}{{- fail "autoscaling.keda.prometheusAddress: needed with autoscaling.workers keda, such as http://prometheus.monitoring:9090" -}}{{- end -}}
{{- $root := .root -}}
{{- $pool := .pool -}}
{{- $stage := .stage -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ include "medfleet.name" . }}
  labels:
    {{- include "medfleet.labels" . | nindent 4 }}
spec:
  scaleTargetRef: { name: {{ include "medfleet.name" . }} }
  minReplicaCount: {{ .min }}
  maxReplicaCount: {{ .max }}
  pollingInterval: {{ $keda.pollingIntervalSeconds }}
  cooldownPeriod: {{ $keda.cooldownSeconds }}
  fallback:
    failureThreshold: {{ $keda.fallback.failures }}
    {{- /* KEDA sets it past the most, which it knows as the autoscaler's alone. */}}
    replicas: {{ min (int $keda.fallback.replicas) (int .max) }}
    behavior: currentReplicasIfHigher
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- include "medfleet.scaleBehavior" $root | nindent 8 }}
  triggers:
    - type: prometheus
      name: backlog
      metricType: AverageValue
      metadata:
        serverAddress: {{ $keda.prometheusAddress | quote }}
        query: {{ include "medfleet.backlog.query" . | quote }}
        threshold: {{ include "medfleet.backlog.threshold" . | quote }}
        activationThreshold: "0"
        # A metric that is not there is a failure, and the fallback holds: it must not read as "nothing to do".
        ignoreNullValues: "false"
    {{- if $keda.activateFromNats }}
    {{- if ne $root.Values.nats.mode "own" }}{{- fail "autoscaling.keda.activateFromNats: needs nats.mode own, whose monitoring page the chart knows" }}{{- end }}
    {{- range $class := list "stat" "urgent" "routine" "bulk" }}
    - type: nats-jetstream
      name: waiting-{{ $class }}
      metadata:
        natsServerMonitoringEndpoint: {{ printf "%s-peers.%s.svc:8222" (include "medfleet.name" (dict "root" $root "component" "nats")) $root.Release.Namespace | quote }}
        account: "$G"
        stream: {{ printf "WORK_%s" (upper $stage) | quote }}
        consumer: {{ printf "%s_%s" $pool $class | quote }}
        # So high that it never asks for a second worker.
        lagThreshold: "1000000000"
        activationLagThreshold: "0"
        useHttps: "false"
    {{- end }}
    {{- end }}
{{- end -}}
