{{/* NATS's own configuration, and whether its disk holds what the streams may take. */}}

{{/* Bytes that JetStream may use: 90 % of the volume, the rest is the file system's. */}}
{{- define "medfleet.nats.storeBytes" -}}
{{- div (mul (int64 .Values.nats.own.volume.sizeGiB) 1073741824 9) 10 -}}
{{- end -}}

{{/* MiB that the streams may take together: JetStream reserves each one's limit when it is made. */}}
{{- define "medfleet.nats.streamsMiB" -}}
{{- $mib := .Values.queue.streamsMiB -}}
{{- /* Three stages wait for release and have work, four small buckets: uploads, pending accepts, leases, pauses. What the
processes agree on takes 64 KiB. */ -}}
{{- $sum := add 1 (mul 3 $mib.intake) (mul 3 $mib.work) $mib.events $mib.records $mib.dead $mib.audit (mul 4 $mib.small) -}}
{{- if eq .Values.store.kind "jetstream" -}}{{- $sum = add $sum $mib.objects -}}{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* Refuses what would leave accepted jobs behind. A server that was alone and finds others takes its streams for left-overs and
     deletes them; one of three that finds nobody does not know them. Where no server runs, the claims that outlive the set tell
     how many there were. Only a cluster can be asked: without one, as in `helm template`, nothing is found and everything is
     rendered. */}}
{{- define "medfleet.nats.kept" -}}
{{- $name := include "medfleet.name" (dict "root" . "component" "nats") -}}
{{- $replicas := int .Values.nats.own.replicas -}}
{{- $how := "see docs/how-to/upgrade.md, What an upgrade cannot change" -}}
{{- $running := 0 -}}
{{- range $old := (lookup "apps/v1" "StatefulSet" .Release.Namespace "").items -}}
{{- $labels := default dict $old.metadata.labels -}}
{{- if and (eq (toString (get $labels "app.kubernetes.io/instance")) $.Release.Name) (eq (toString (get $labels "app.kubernetes.io/component")) "nats") -}}
{{- $running = int $old.spec.replicas -}}
{{- if ne $.Values.nats.mode "own" -}}
{{- fail (printf "nats.mode: %s, but this release's jobs are in its own NATS, %s: allowed is own; %s" $.Values.nats.mode $old.metadata.name $how) -}}
{{- else if ne $old.metadata.name $name -}}
{{- fail (printf "nameOverride, fullnameOverride: they make the name %s, but this release's jobs are in %s, which would be removed; %s" $name $old.metadata.name $how) -}}
{{- else if and $running (ne $running $replicas) -}}
{{- fail (printf "nats.own.replicas: %d, but the jobs are on %d, which a fleet of %d would lose: allowed is %d; %s" $replicas $running $replicas $running $how) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.nats.mode "own") (not $running) -}}
{{- $claims := list -}}
{{- range $index := until 3 -}}
{{- $claim := printf "data-%s-%d" $name $index -}}
{{- if lookup "v1" "PersistentVolumeClaim" $.Release.Namespace $claim -}}{{- $claims = append $claims $claim -}}{{- end -}}
{{- end -}}
{{- $were := ternary 1 3 (eq (join ", " $claims) (printf "data-%s-0" $name)) -}}
{{- if and $claims (ne $were $replicas) -}}
{{- fail (printf "nats.own.replicas: %d, but no server runs and the claims that are left, %s, are those of %d, whose jobs a fleet of %d would lose: allowed is %d; or, if their jobs may go, remove these claims first; %s" $replicas (join ", " $claims) $were $replicas $were $how) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "medfleet.nats.config" -}}
{{- $own := .Values.nats.own -}}
{{- $name := include "medfleet.name" (dict "root" . "component" "nats") -}}
{{- $needed := include "medfleet.nats.streamsMiB" . | int64 -}}
{{- $have := div (include "medfleet.nats.storeBytes" . | int64) 1048576 -}}
{{- if gt $needed $have -}}
{{- fail (printf "nats.own.volume.sizeGiB: %d GiB leave %d MiB for streams, queue.streamsMiB needs %d MiB: allowed is %d or more" (int64 $own.volume.sizeGiB) $have $needed (div (add (div (mul $needed 10) 9) 1024) 1024)) -}}
{{- end -}}
server_name: $POD_NAME
listen: {{ printf "%s:4222" .Values.process.listenAddress | quote }}
http: {{ printf "%s:8222" .Values.process.listenAddress | quote }}
max_payload: 1048576
authorization { token: $CLIENT_TOKEN }
jetstream {
  store_dir: "/data"
  max_file_store: {{ include "medfleet.nats.storeBytes" . }}
  sync_interval: {{ $own.syncInterval }}
}
{{- if $own.tls.enabled }}
tls {
  cert_file: "/etc/nats-tls/tls.crt"
  key_file: "/etc/nats-tls/tls.key"
  ca_file: "/etc/nats-tls/ca.crt"
}
{{- end }}
{{- if eq (int $own.replicas) 3 }}
# What the pod's pre-stop begins: leaders move first, then clients go to the other servers.
lame_duck_grace_period: 5s
lame_duck_duration: 30s
cluster {
  name: {{ $name | quote }}
  listen: {{ printf "%s:6222" .Values.process.listenAddress | quote }}
  # Clients come back by the Service's name: pods' addresses change, and stand in no certificate.
  no_advertise: true
  # Who joins sees and changes everything, so it shows the token; the addresses with it come from the pod.
  authorization { user: servers, password: $CLIENT_TOKEN, timeout: 5 }
  routes: [$ROUTE_0, $ROUTE_1, $ROUTE_2]
  {{- if $own.tls.enabled }}
  # Routes show certificates to each other.
  tls {
    cert_file: "/etc/nats-tls/tls.crt"
    key_file: "/etc/nats-tls/tls.key"
    ca_file: "/etc/nats-tls/ca.crt"
    verify: true
  }
  {{- end }}
}
{{- end }}
{{- end -}}
