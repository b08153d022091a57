"""llama.cpp, as llama-cpp-python has it, on what `medfleet bench model` does: a prompt is read, texts are written side by
side; with --image an image is encoded instead.

    python llama_cpp_bench.py --text text-q8_0.gguf --dtype q8_0 --threads 2
    python llama_cpp_bench.py --image mmproj-f16.gguf --words words.gguf --dtype f16 --threads 2
"""

import os
import sys

import llama_cpp as llama
from llama_cpp_models import SIDE, UBATCH, Images, context_params, decode, load, new_context, system
from samples import Samples, options_parser

parser = options_parser()
parser.add_argument("--text")
parser.add_argument("--image")
parser.add_argument("--words")
parser.add_argument("--image-size", type=int, default=SIDE, help="pixels, as the file of the vision tower says")
parser.add_argument("--dtype", required=True)
options = parser.parse_args()

samples = Samples(
    options, peer="llama.cpp", version=f"llama-cpp-python {llama.__version__}", dtype=options.dtype, about=system()
)


def context(model):
    params = context_params(options.threads)
    sequences = max(options.batch)
    positions = options.prompt + sequences * (options.begin + len(options.batch) * (options.steps + 2)) + 256
    params.n_ctx = -(-positions // 256) * 256
    params.n_batch = params.n_ubatch = UBATCH
    params.n_seq_max = sequences
    params.kv_unified = True
    return new_context(model, params)


def text():
    model = load(options.text)
    ctx = context(model)
    batch = llama.llama_batch_init(UBATCH, 0, 1)
    memory = llama.llama_get_memory(ctx)

    def prompt():
        llama.llama_memory_clear(memory, True)
        decode(ctx, batch, [(1024 + at, at, 0, at + 1 == options.prompt) for at in range(options.prompt)])

    samples.measure("prompt read", prompt, options.repeat)
    llama.llama_memory_clear(memory, True)
    for sequence in range(max(options.batch)):
        decode(ctx, batch, [(1024 + at, at, sequence, at + 1 == options.begin) for at in range(options.begin)])
    lengths = [options.begin] * max(options.batch)
    for count in options.batch:

        def step():
            decode(ctx, batch, [(2048, lengths[sequence], sequence, True) for sequence in range(count)])
            # All of the logits are there: reading one waits for them.
            llama.llama_get_logits_ith(ctx, count - 1)[0]
            for sequence in range(count):
                lengths[sequence] += 1

        samples.measure(f"step of {count}", step, options.steps)


def image():
    images = Images(options.image, options.words, options.threads, options.image_size)
    chunk = images.chunk()
    samples.measure("image encoded", lambda: images.encode(chunk), options.repeat)


image() if options.image else text()
sys.stdout.flush()
os._exit(0)  # Without freeing: it is of no use here.
