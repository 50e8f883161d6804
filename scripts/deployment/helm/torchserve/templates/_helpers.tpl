{{- define "torchserve.selector" -}}
app.kubernetes.io/name: torchserve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "torchserve.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities:
  drop: ["ALL"]
{{- end }}

{{- /* A real prediction of every model. */ -}}
{{- define "torchserve.ready" -}}
exec:
  command:
    - /app/scripts/ready
    {{- range .Values.models }}
    - {{ .name }}
    {{- end }}
    - --timeout-s=20
    - --folder=/run/torchserve
    - --ts-config=/run/torchserve/config.properties
timeoutSeconds: 30
{{- end }}
