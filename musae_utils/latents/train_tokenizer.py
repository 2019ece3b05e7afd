"""Train the nano tokenizer (``make nano``): the codec's training, with one large codebook."""

from musae_utils.latents.nano import TOKENIZER
from musae_utils.models.train_codec import train
from musae_utils.models.training import arguments

if __name__ == "__main__":
    asked = arguments(__doc__.splitlines()[0], steps=7_000, shards=16)
    train(asked.folder, asked.out, asked.steps, asked.shards, seed=3, part="tokenizer",
          config=TOKENIZER, eight_bit=True)  # fmt: skip
