"""Whole reports through llama.cpp: an image is encoded, the prompt read with it, a text written; with many queued, in the
order in which llama.cpp's own server does it.

llama-cpp-python has no server with parallel slots, and compiling llama.cpp's out of its package takes longer than all the
measurements. So this is what that server's `update_slots` does (tools/server/server-context.cpp of the package's own
llama.cpp): every pass takes one token of each text that is being written and as much of the waiting prompts as fits; a
slot's image is encoded and read when its turn in the pass comes, one image after the other, while the texts wait. There is
no HTTP, no PNG and no JSON here, which is to llama.cpp's advantage. Each slot has its own cache, as with `--parallel N`.

    python llama_cpp_reports.py --text text-q8_0.gguf --image mmproj-f16.gguf --words words.gguf --dtype q8_0 --threads 2
"""

import os
import sys

import llama_cpp as llama
import numpy
from llama_cpp_models import IMAGE_TOKENS, UBATCH, Images, context_params, decode, load, new_context, system
from samples import Samples, reports_parser

parser = reports_parser()
parser.add_argument("--text", required=True)
parser.add_argument("--image", required=True)
parser.add_argument("--words", required=True)
parser.add_argument("--dtype", required=True)
options = parser.parse_args()

# Of a pass at most, as the server has it.
BATCH = 2048
FIRST_TOKEN = 1024


class Slot:
    """A report on its way: first the text before its image, then the image and the text after it, then what is written."""

    def __init__(self):
        self.position, self.written, self.token, self.row = 0, 0, None, None

    def writes(self):
        return self.token is not None

    def words(self):
        """How much text its prompt has now."""
        return options.prompt - IMAGE_TOKENS - options.before if self.position else options.before


class Server:
    def __init__(self):
        self.slots = min(options.slots, options.jobs)
        model = load(options.text)
        params = context_params(options.threads)
        positions = options.prompt + options.tokens + 1
        params.n_ctx = self.slots * -(-positions // 256) * 256
        params.n_batch, params.n_ubatch, params.n_seq_max = BATCH, UBATCH, self.slots
        params.kv_unified = False
        self.ctx = new_context(model, params)
        self.memory = llama.llama_get_memory(self.ctx)
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self.batch = llama.llama_batch_init(BATCH, 0, 1)
        self.images = Images(options.image, options.words, options.threads)

    def write(self, jobs):
        """Writes so many reports that are all asked for now."""
        running, waiting = [None] * self.slots, jobs
        while waiting or any(running):
            for sequence in range(self.slots):
                if running[sequence] is None and waiting:
                    llama.llama_memory_seq_rm(self.memory, sequence, -1, -1)
                    running[sequence], waiting = Slot(), waiting - 1
            self.do_pass(running)
            for sequence, slot in enumerate(running):
                if slot and slot.written == options.tokens:
                    running[sequence] = None

    def do_pass(self, running):
        rows = []
        for sequence, slot in enumerate(running):
            if slot and slot.writes():
                slot.row = len(rows)
                rows.append((slot.token, slot.position, sequence, True))
                slot.position += 1
        for sequence, slot in enumerate(running):
            # What does not fit waits for the next pass.
            if slot and not slot.writes() and len(rows) + slot.words() <= BATCH:
                self.read(rows, sequence, slot)
        decode(self.ctx, self.batch, rows)
        for slot in running:
            if slot and slot.row is not None:
                logits = llama.llama_get_logits_ith(self.ctx, slot.row)
                slot.token = int(numpy.ctypeslib.as_array(logits, (self.vocab,)).argmax())
                slot.written, slot.row = slot.written + 1, None

    def read(self, rows, sequence, slot):
        """The next stretch of a prompt: its image now, its text with this pass."""
        count, last = slot.words(), slot.position > 0
        if last:
            self.images.read(self.ctx, sequence, slot.position)
            slot.position += IMAGE_TOKENS
        for at in range(count):
            wanted = last and at + 1 == count
            rows.append((FIRST_TOKEN + slot.position, slot.position, sequence, wanted))
            slot.position += 1
        if last:
            slot.row = len(rows) - 1


server = Server()
about = f"passes as of its server with {server.slots} slots, prompts of {options.prompt} tokens; {system()}"
samples = Samples(
    options,
    peer="llama.cpp",
    version=f"llama-cpp-python {llama.__version__}",
    dtype=options.dtype,
    about=about,
)
samples.measure_reports(server.write)
sys.stdout.flush()
os._exit(0)  # Without freeing: it is of no use here.
