# topr with vLLM on an NVIDIA GPU. Not built in the project's own tests, which have no GPU.
#   docker build -t topr . && docker run --gpus all -v $PWD/runs:/runs topr run gsm8k-small -o /runs/gsm8k-small
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv git && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/topr
ENV PATH=/opt/topr/bin:$PATH
COPY . /src
RUN pip install --no-cache-dir '/src[vllm]'
ENTRYPOINT ["topr"]
