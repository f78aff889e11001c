# SPDX-License-Identifier: Apache-2.0
"""`blipstream finetune`: a captioner learns from your images and captions.

command.py     the options
run.py         the run, from the checkpoint and the data to what `blipstream build` takes
settings.py    what is trained, how, and the defaults
sources.py     where the data lie: which reader takes which layout
data.py        the data, read and checked
words.py       new words in the tokenizer
embeddings.py  the images' embeddings on disk, while the encoder is frozen
examples.py    batches, in an order that only the seed decides
model.py       what is frozen and what is trained; what is saved
validation.py  loss, exact captions and CIDEr on what is held out
training.py    the loop, which goes on where it was stopped
line.py        progress in one line
report.py      the model card, the metrics and the curves
"""
