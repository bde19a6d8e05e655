"""Runs in OpenVINO's own environment: MODEL THREADS; each line of standard input is a number of
prompt tokens to compute, answered by a line of JSON."""
import json
import os
import random
import sys

# Its runtime writes progress to standard output: keep that for the answers.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import numpy  # noqa: E402
import openvino  # noqa: E402
import openvino_genai  # noqa: E402

WARM_UP = 512


def main():
    model, threads = sys.argv[1], int(sys.argv[2])
    pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = 1
    config.do_sample = False
    config.ignore_eos = True
    generator = random.Random(0)

    def prefill(tokens):
        # Other tokens each time: nothing may be found in a prefix cache.
        ids = numpy.array([[generator.randrange(100, 40000) for _ in range(tokens)]], numpy.int64)
        result = pipeline.generate(openvino.Tensor(ids), config)
        return tokens / (result.perf_metrics.get_ttft().mean / 1e3)

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    for _ in range(2):
        prefill(WARM_UP)
    answer(ready=True)
    for line in sys.stdin:
        answer(tokens_per_second=prefill(int(line)))


if __name__ == "__main__":
    main()
