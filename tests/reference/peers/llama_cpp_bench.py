"""llama.cpp, as llama-cpp-python has it, on what `medfleet bench model` does: a prompt is read, texts are written side by
side; with --image an image of 896 pixels is encoded instead.

    python llama_cpp_bench.py --text text-q8_0.gguf --dtype q8_0 --threads 2
    python llama_cpp_bench.py --image mmproj-f16.gguf --words words.gguf --dtype f16 --threads 2
"""

import ctypes
import os
import sys

import llama_cpp as llama
from llama_cpp import mtmd_cpp as mtmd
from samples import Samples, options_parser

parser = options_parser()
parser.add_argument("--text")
parser.add_argument("--image")
parser.add_argument("--words")
parser.add_argument("--dtype", required=True)
options = parser.parse_args()

FLASH_ATTENTION_ON = 1
UBATCH = 512


@llama.llama_log_callback
def quiet(level, text, user):
    pass


llama.llama_log_set(quiet, ctypes.c_void_p(0))
llama.llama_backend_init()
info = llama.llama_print_system_info().decode().strip()
samples = Samples(
    options, peer="llama.cpp", version=f"llama-cpp-python {llama.__version__}", dtype=options.dtype, about=info
)


def load(path):
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(path.encode(), params)
    assert model, f"llama.cpp does not load {path}"
    return model


def context(model):
    params = llama.llama_context_default_params()
    sequences = max(options.batch)
    positions = options.prompt + sequences * (options.begin + len(options.batch) * (options.steps + 2)) + 256
    params.n_ctx = -(-positions // 256) * 256
    params.n_batch = params.n_ubatch = UBATCH
    params.n_seq_max = sequences
    params.kv_unified = True
    params.n_threads = params.n_threads_batch = options.threads
    params.flash_attn_type = FLASH_ATTENTION_ON
    made = llama.llama_init_from_model(model, params)
    assert made, "llama.cpp makes no context"
    return made


def decode(ctx, batch, rows):
    """rows: token, position, sequence, whether its logits are wanted."""
    batch.n_tokens = len(rows)
    for at, (token, position, sequence, wanted) in enumerate(rows):
        batch.token[at], batch.pos[at] = token, position
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        batch.logits[at] = wanted
    assert llama.llama_decode(ctx, batch) == 0


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
    side = 896
    model = load(options.words)
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.print_timings, params.warmup = False, False, False
    params.n_threads, params.flash_attn_type = options.threads, FLASH_ATTENTION_ON
    ctx = mtmd.mtmd_init_from_file(options.image.encode(), model, params)
    assert ctx, f"llama.cpp does not load {options.image}"
    pixels = bytes((at // 3) % 251 for at in range(3 * side * side))
    pixels = (ctypes.c_ubyte * len(pixels)).from_buffer_copy(pixels)
    bitmap = mtmd.mtmd_bitmap_init(side, side, pixels)
    chunks = mtmd.mtmd_input_chunks_init()
    words = mtmd.mtmd_input_text()
    words.text, words.add_special, words.parse_special = mtmd.mtmd_default_marker(), False, True
    words.text_len = len(words.text)
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd.mtmd_tokenize(ctx, chunks, ctypes.byref(words), bitmaps, 1) == 0
    all_chunks = [mtmd.mtmd_input_chunks_get(chunks, at) for at in range(mtmd.mtmd_input_chunks_size(chunks))]
    chunk = next(chunk for chunk in all_chunks if mtmd.mtmd_input_chunk_get_type(chunk) == 1)
    assert mtmd.mtmd_input_chunk_get_n_tokens(chunk) == 256

    def encode():
        assert mtmd.mtmd_encode_chunk(ctx, chunk) == 0

    samples.measure("image encoded", encode, options.repeat)


image() if options.image else text()
sys.stdout.flush()
os._exit(0)  # Without freeing: it is of no use here.
