"""Measures on request for `compare.py`: answers each JSON line with one, until its input ends.

    python worker.py --data DIR [--device cpu|cuda:0] [--threads N]

A request is `{"mode": MODE, "freeze_features": BOOL}` for `time_step.py`, or `{"operations": true}`
for `time_operations.py`. Between requests the worker does nothing and holds no memory for a model.
"""

import gc
import json
import sys

import torch

from time_operations import time_operations
from time_step import Data, parser, time_steps


def main():
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    data = Data(arguments.data, torch.device(arguments.device))
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("operations"):
            answer = time_operations(data, arguments)
        else:
            answer = time_steps(data, arguments, request["mode"], request["freeze_features"])
        # Cached memory would not be available to the engine.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
