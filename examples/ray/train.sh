#!/bin/bash
# Train on a Ray cluster with two ranks, and predict with two workers: `bash train.sh pairs.tsv sources.txt`.
# Without a cluster, one is started on this machine; others join it by `ray start --address HOST:6379`.
set -e
ray status > /dev/null 2>&1 || ray start --head --disable-usage-stats
dragoman fit "$1" --out model --on ray --training.devices 2 --resume auto
dragoman predict model --input "$2" --output outputs.txt --on ray --workers 2
echo "outputs.txt is complete; ray stop ends the cluster of this machine"
