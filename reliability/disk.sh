#!/usr/bin/env bash
# Fill the disk of a training, and make its checkpoints read-only, while it is at work; then mend that, and go on.
#
#     sudo reliability/disk.sh [PYTHON]      (a small disk in memory is mounted, which needs root)
#
# Each time: the run says what it could not write, the checkpoints before stay, and --resume ends as if nothing had
# been: compare the losses that are printed.
set -euo pipefail
python=${1:-python}
disk=$(mktemp -d)
out=$disk/model
checkpoints=$out.training/checkpoints
words="--preset tiny --model.d_model 64 --model.dim_feedforward 128 --training.max_steps 60 --training.valid_every 10
    --training.checkpoint_every 5 --training.batch_tokens 256 --training.loggers none 
    --evaluation.report none --data.cache none --optimization.warmup_steps 5"
mount -t tmpfs -o size=16m tmpfs "$disk"
trap 'umount -q "$checkpoints" || true; umount "$disk"; rmdir "$disk"' EXIT

"$python" - > "$disk/pairs.tsv" <<'END'
import random
chance = random.Random(0)
for word in sorted({"".join(chance.choices("abcdefgh", k=chance.randint(3, 7))) for _ in range(800)}):
    print(word, word.upper(), sep="\t")
END
fit() { "$python" -m dragoman fit "$@" --out "$out" && echo "-> exit code 0" || echo "-> exit code $?"; }
when_begun() { until [ -e "$checkpoints/step-15.ckpt" ]; do sleep 0.01; done; }

echo "== the disk fills up"
(when_begun; head -c "$(($(stat -f -c '%a * %S' "$disk") - 200000))" /dev/zero > "$disk/ballast") &
fit "$disk/pairs.tsv" $words
wait
ls "$checkpoints"
echo "== and has room again"
rm "$disk/ballast"
fit --resume

echo "== the checkpoints become read-only"
rm -rf "$out" "$out.training"
(when_begun; mount --bind "$checkpoints" "$checkpoints"; mount -o remount,bind,ro "$checkpoints") &
fit "$disk/pairs.tsv" $words
wait
ls "$checkpoints"
echo "== and can be written again"
umount "$checkpoints"
rm -rf "$out"
fit --resume
