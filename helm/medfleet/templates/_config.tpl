{{/* The configuration file of each service. What the chart decides stands beside what the values' `config` tables say;
     the schema keeps the two apart, so nothing here can be overridden by accident. */}}

{{- define "medfleet.ports" -}}
{{- dict "admin" 9464 "api" 8443 "tokens" 7444 "client" 4222 "cluster" 6222 "monitor" 8222 | toJson -}}
{{- end -}}

{{- define "medfleet.listen" -}}
{{- printf "%s:%d" .root.Values.process.listenAddress (int .port) -}}
{{- end -}}

{{/* dict "root" $ "role" the service: [process], [queue] and [store], which every service has. */}}
{{- define "medfleet.config.common" -}}
{{- $values := .root.Values -}}
{{- $ports := include "medfleet.ports" .root | fromJson -}}
{{- $telemetry := dict "log" $values.process.log "log_format" $values.process.logFormat -}}
{{- with $values.process.otlpEndpoint -}}
  {{- $_ := set $telemetry "otlp_endpoint" . -}}
  {{- /* Left out for gRPC, which is the default: services from before the setting existed refuse it. */ -}}
  {{- $protocol := default "grpc" $values.process.otlpProtocol -}}
  {{- if ne $protocol "grpc" -}}{{- $_ := set $telemetry "otlp_protocol" $protocol -}}{{- end -}}
{{- end -}}
{{- $process := dict "admin_listen" (include "medfleet.listen" (dict "root" .root "port" $ports.admin)) "drain" (printf "%ds" (int $values.process.drainSeconds)) "telemetry" $telemetry -}}
{{ include "medfleet.toml" (dict "path" "process" "table" $process) }}

{{ include "medfleet.toml" (dict "path" "queue" "table" (include "medfleet.config.queue" . | fromJson)) }}

{{ include "medfleet.toml" (dict "path" "store" "table" (include "medfleet.config.store" .root | fromJson)) }}
{{- end -}}

{{- define "medfleet.config.queue" -}}
{{- $nats := .root.Values.nats -}}
{{- $queue := deepCopy .root.Values.queue.config -}}
{{- $sizes := dict -}}
{{- range $name, $mib := .root.Values.queue.streamsMiB -}}{{- $_ := set $sizes $name (printf "%dMiB" (int $mib)) -}}{{- end -}}
{{- $_ := set $queue "stream_bytes_max" $sizes -}}
{{- $folder := "/etc/medfleet/nats" -}}
{{- $auth := include "medfleet.natsAuth" . | fromJson -}}
{{- $secret := printf "%s/auth/%s" $folder $auth.key -}}
{{- if eq $auth.kind "credentials" -}}{{- $_ := set $queue "credentials" $secret -}}
{{- else if eq $auth.kind "token" -}}{{- $_ := set $queue "token" (dict "file" $secret) -}}
{{- else if eq $auth.kind "user" -}}
  {{- $_ := set $queue "user" $auth.userName -}}
  {{- $_ := set $queue "password" (dict "file" $secret) -}}
{{- end -}}
{{- if eq $nats.mode "own" -}}
  {{- $scheme := ternary "tls" "nats" $nats.own.tls.enabled -}}
  {{- $_ := set $queue "urls" (list (printf "%s://%s:4222" $scheme (include "medfleet.name" (dict "root" .root "component" "nats")))) -}}
  {{- $_ := set $queue "replicas" $nats.own.replicas -}}
  {{- if $nats.own.tls.enabled -}}{{- $_ := set $queue "tls" (dict "ca" (printf "%s/tls/ca.crt" $folder)) -}}{{- end -}}
{{- else -}}
  {{- $_ := set $queue "urls" $nats.external.urls -}}
  {{- $_ := set $queue "replicas" $nats.external.replicas -}}
  {{- if $nats.external.tls.enabled -}}
    {{- $tls := dict "ca" (printf "%s/tls/ca.crt" $folder) -}}
    {{- if $nats.external.tls.clientCertificate -}}
      {{- $_ := set $tls "cert" (printf "%s/tls/tls.crt" $folder) -}}
      {{- $_ := set $tls "key" (printf "%s/tls/tls.key" $folder) -}}
    {{- end -}}
    {{- $_ := set $queue "tls" $tls -}}
  {{- end -}}
{{- end -}}
{{- toJson $queue -}}
{{- end -}}

{{/* Refuses another number of shards than the records are in: no pod would start with it. What is installed tells the number;
     only a cluster can be asked, and without one, as in `helm template`, everything is rendered. */}}
{{- define "medfleet.records.kept" -}}
{{- $old := lookup "v1" "ConfigMap" .Release.Namespace (include "medfleet.name" (dict "root" . "component" "ingest")) -}}
{{- if $old -}}
{{- $line := regexFind "(?m)^record_shards = [0-9]+" (toString (get (default dict $old.data) "config.toml")) -}}
{{- $there := default "1" (trimPrefix "record_shards = " $line) | int -}}
{{- $set := default 1 .Values.queue.config.record_shards | int -}}
{{- if ne $set $there -}}
{{- fail (printf "queue.config.record_shards: %d, but the records of this release are in %d, and with another number no pod starts: allowed is %d; see docs/how-to/upgrade.md, What an upgrade cannot change" $set $there $there) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses to look for blobs where none of this release's are: open jobs would fail, and results not be found. As above, only a
     cluster knows. */}}
{{- define "medfleet.store.kept" -}}
{{- $name := include "medfleet.name" (dict "root" . "component" "ingest") -}}
{{- $old := lookup "v1" "ConfigMap" .Release.Namespace $name -}}
{{- if $old -}}
{{- $backend := regexFind "(?m)^\\[store\\.backend\\]\\n([a-z_]+ = .*\\n)*" (toString (get (default dict $old.data) "config.toml")) -}}
{{- range $key := list "kind" "bucket" -}}
{{- $there := regexFind (printf "(?m)^%s = .*$" $key) $backend | trimPrefix (printf "%s = " $key) -}}
{{- $set := get $.Values.store $key | toJson -}}
{{- if and $there (ne $set $there) -}}
{{- fail (printf "store.%s: %s, but what this release has stored is in %s, and is looked for nowhere else: allowed is %s; or, once all of it has been copied with the fleet stopped, remove the ConfigMap %s first; see docs/how-to/upgrade.md, What an upgrade cannot change" $key $set $there $there $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "medfleet.config.store" -}}
{{- $given := .Values.store -}}
{{- $store := deepCopy $given.config -}}
{{- $_ := set $store "key" (dict "file" (printf "/etc/medfleet/store/%s" $given.key.key)) -}}
{{- $backend := dict "kind" $given.kind "bucket" $given.bucket -}}
{{- if eq $given.kind "jetstream" -}}
  {{- $_ := set $backend "replicas" (include "medfleet.replicas" . | int) -}}
{{- else -}}
  {{- $_ := set $backend "region" $given.s3.region -}}
  {{- with $given.s3.endpoint -}}{{- $_ := set $backend "endpoint" . -}}{{- end -}}
  {{- if $given.s3.allowHttp -}}{{- $_ := set $backend "allow_http" true -}}{{- end -}}
  {{- if $given.s3.ca.secretName -}}{{- $_ := set $backend "ca" (printf "/etc/medfleet/s3-ca/%s" $given.s3.ca.key) -}}{{- end -}}
  {{- if $given.s3.credentials.secretName -}}
    {{- $_ := set $backend "access_key_id" (dict "file" (printf "/etc/medfleet/s3/%s" $given.s3.credentials.accessKeyIdKey)) -}}
    {{- $_ := set $backend "secret_access_key" (dict "file" (printf "/etc/medfleet/s3/%s" $given.s3.credentials.secretAccessKeyKey)) -}}
  {{- end -}}
{{- end -}}
{{- $_ := set $store "backend" $backend -}}
{{- toJson $store -}}
{{- end -}}

{{/* Copies of a stream. */}}
{{- define "medfleet.replicas" -}}
{{- if eq .Values.nats.mode "own" -}}{{ .Values.nats.own.replicas }}{{- else -}}{{ .Values.nats.external.replicas }}{{- end -}}
{{- end -}}

{{- define "medfleet.config.ingest" -}}
{{- $values := .Values.ingest -}}
{{- $ports := include "medfleet.ports" . | fromJson -}}
{{- $models := dict -}}
{{- $embedders := dict -}}
{{- range $name, $pool := .Values.pools -}}
  {{- range $alias := $pool.aliases -}}
    {{- if or (hasKey $models $alias) (hasKey $embedders $alias) -}}{{- fail (printf "pools.%s.aliases: %s names another pool already; an alias belongs to one pool" $name $alias) -}}{{- end -}}
    {{- $_ := set (ternary $embedders $models (eq $pool.kind "embedder")) $alias $name -}}
  {{- end -}}
{{- end -}}
{{- range $alias := $values.edge.aliases -}}
  {{- if or (hasKey $models $alias) (hasKey $embedders $alias) -}}{{- fail (printf "ingest.edge.aliases: %s names a pool already; an alias is the hub's or a pool's" $alias) -}}{{- end -}}
  {{- $_ := set $models $alias "hub" -}}
{{- end -}}
{{- if not $models -}}{{- fail "pools: at least one pool of kind writer is needed; see the presets values-small.yaml and values-gpu.yaml" -}}{{- end -}}
{{- $default := $values.defaultModel -}}
{{- if not $default -}}
  {{- if gt (len $models) 1 -}}{{- fail (printf "ingest.defaultModel: needed where there are several aliases; allowed: %s" (keys $models | sortAlpha | join ", ")) -}}{{- end -}}
  {{- $default = first (keys $models) -}}
{{- else if not (hasKey $models $default) -}}
  {{- fail (printf "ingest.defaultModel: %s is no alias of a pool of kind writer; allowed: %s" $default (keys $models | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $ingest := deepCopy $values.config -}}
{{- $_ := set $ingest "listen" (include "medfleet.listen" (dict "root" . "port" $ports.api)) -}}
{{- $_ := set $ingest "tokens" (printf "/etc/medfleet/tokens/%s" $values.tokens.key) -}}
{{- $_ := set $ingest "models" $models -}}
{{- $_ := set $ingest "default_model" $default -}}
{{- if $embedders -}}
  {{- $_ := set $ingest "embedders" $embedders -}}
  {{- if $values.defaultEmbedder -}}
    {{- if not (hasKey $embedders $values.defaultEmbedder) -}}{{- fail (printf "ingest.defaultEmbedder: %s is no alias of a pool of kind embedder; allowed: %s" $values.defaultEmbedder (keys $embedders | sortAlpha | join ", ")) -}}{{- end -}}
    {{- $_ := set $ingest "default_embedder" $values.defaultEmbedder -}}
  {{- else if gt (len $embedders) 1 -}}
    {{- fail (printf "ingest.defaultEmbedder: needed where there are several aliases; allowed: %s" (keys $embedders | sortAlpha | join ", ")) -}}
  {{- end -}}
{{- else if $values.defaultEmbedder -}}
  {{- fail "ingest.defaultEmbedder: there is no pool of kind embedder" -}}
{{- end -}}
{{- if $values.tls.enabled -}}
  {{- $tls := dict "cert" "/etc/medfleet/tls/tls.crt" "key" "/etc/medfleet/tls/tls.key" -}}
  {{- if $values.tls.clientCa -}}{{- $_ := set $tls "client_ca" "/etc/medfleet/tls/ca.crt" -}}{{- end -}}
  {{- $_ := set $ingest "tls" $tls -}}
{{- end -}}
{{- if $values.edge.hub -}}
  {{- $edge := deepCopy $values.edge.config -}}
  {{- $_ := set $edge "hub" $values.edge.hub -}}
  {{- $_ := set $edge "tokens_file" (printf "/etc/medfleet/hub-tokens/%s" $values.edge.tokens.key) -}}
  {{- $_ := set $edge "ca_file" (printf "/etc/medfleet/hub-ca/%s" $values.edge.ca.key) -}}
  {{- with $values.edge.serverName -}}{{- $_ := set $edge "server_name" . -}}{{- end -}}
  {{- $_ := set $ingest "edge" $edge -}}
{{- end -}}
{{ include "medfleet.config.common" (dict "root" . "role" "ingest") }}

{{ include "medfleet.toml" (dict "path" "ingest" "table" $ingest) }}
{{- end -}}

{{/* dict "root" $ "stage" … "pool" name "spec" the pool "given" the stage, with defaults */}}
{{- define "medfleet.config.stage" -}}
{{- $ports := include "medfleet.ports" .root | fromJson -}}
{{- $table := deepCopy .given.config -}}
{{- $_ := set $table "pool" .pool -}}
{{- if eq .stage "preprocess" -}}
  {{- $embedder := eq .spec.kind "embedder" -}}
  {{- /* The simulated model names its side itself. */ -}}
  {{- $simulated := dig "simulated" "frame_side" 0 .spec.model -}}
  {{- $_ := set $table "frame_side" (coalesce .spec.frameSide $simulated (ternary 448 896 $embedder)) -}}
  {{- if and $embedder (not (hasKey $table "convention")) -}}{{- $_ := set $table "convention" "medsiglip" -}}{{- end -}}
{{- else if eq .stage "encode" -}}
  {{- if .root.Values.ingest.edge.hub -}}{{- $_ := set $table "for_edge" true -}}{{- end -}}
  {{- if include "medfleet.direct" .root -}}{{- $_ := set $table "listen" (include "medfleet.listen" (dict "root" .root "port" $ports.tokens)) -}}{{- end -}}
  {{- if include "medfleet.direct.tls" .root -}}{{- $_ := set $table "tls" (dict "cert" "/etc/medfleet/token-tls/tls.crt" "key" "/etc/medfleet/token-tls/tls.key") -}}{{- end -}}
{{- else -}}
  {{- if not .root.Values.tokenPath.direct -}}{{- $_ := set $table "fetch_timeout" "0ms" -}}{{- end -}}
  {{- if include "medfleet.direct.tls" .root -}}{{- $_ := set $table "fetch_tls" (dict "ca" "/etc/medfleet/token-tls/ca.crt" "server_name" (include "medfleet.direct.name" .root)) -}}{{- end -}}
{{- end -}}
{{ include "medfleet.config.common" (dict "root" .root "role" .stage) }}
{{- if ne .stage "preprocess" }}

{{ include "medfleet.toml" (dict "path" "model" "table" (include "medfleet.config.model" . | fromJson)) }}
{{- end }}

{{ include "medfleet.toml" (dict "path" .stage "table" $table) }}
{{- end -}}

{{- define "medfleet.config.model" -}}
{{- $model := .spec.model -}}
{{- $table := dict -}}
{{- if ne $model.kind "simulated" -}}
  {{- $table = dict "kind" $model.kind "dtype" $model.dtype "digest_cache" "/var/cache/medfleet" -}}
  {{- range $key := list "path" "vision" "tokenizer" -}}
    {{- with get $model $key -}}{{- $_ := set $table $key (printf "/models/%s" (trimPrefix "/" .)) -}}{{- end -}}
  {{- end -}}
  {{- /* Encode holds no language model. Left out for plain ones: services from before the setting existed refuse it. */ -}}
  {{- if and (eq .stage "decode") (ne (default "plain" $model.weights) "plain") -}}
    {{- $_ := set $table "weights" $model.weights -}}
    {{- if and (eq $model.kind "folder") (include "medfleet.cache.claim" .) -}}{{- $_ := set $table "quantised_cache" "/var/cache/medfleet" -}}{{- end -}}
  {{- end -}}
  {{- /* Left out for the CPU, which is the default: services from before the setting existed refuse it. */ -}}
  {{- if ne .given.device.compute "cpu" -}}{{- $_ := set $table "device" .given.device.compute -}}{{- end -}}
  {{- /* So is this one, unless it is asked for. */ -}}
  {{- if .given.device.pinThreads -}}{{- $_ := set $table "pin_threads" true -}}{{- end -}}
{{- else -}}
  {{- $table = deepCopy (default dict $model.simulated) -}}
  {{- $_ := set $table "kind" "simulated" -}}
{{- end -}}
{{- toJson $table -}}
{{- end -}}
