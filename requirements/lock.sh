#!/usr/bin/env bash
# Writes requirements/dev.txt anew from pyproject.toml (needs uv). torch and what only its GPU builds need stay out:
# torch is installed on its own, from requirements/torch.txt.
set -eu
cd "$(dirname "$0")/.."
leave_out=(torch triton stepscope)
for name in cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx; do
    leave_out+=("nvidia-$name")
done
leave_out+=(cuda-bindings cuda-pathfinder cuda-toolkit)
flags=()
for name in "${leave_out[@]}"; do flags+=(--no-emit-package "$name"); done
uv pip compile pyproject.toml requirements/torch.txt --extra dev --universal --python-version 3.11 \
    --generate-hashes --no-annotate --no-header "${flags[@]}" -o requirements/dev.txt "$@"
