#!/bin/sh
# Tells Spark which GPUs a machine (or a container) has: spark.worker.resource.gpu.discoveryScript on a standalone
# cluster, spark.executor.resource.gpu.discoveryScript on YARN and Kubernetes.
addresses=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/.*/"&"/' | paste -sd, -)
echo "{\"name\": \"gpu\", \"addresses\": [$addresses]}"
