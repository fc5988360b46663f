"""`python -m seq2seq_jax`."""

from seq2seq_jax.cli import run

if __name__ == "__main__":
    run()
