"""What belongs to a release says the same version."""

import seq2seq_jax


def test_the_version_is_the_one_that_is_cited_and_told_of(repository):
    version = seq2seq_jax.__version__
    assert f"\nversion: {version}\n" in (repository / "CITATION.cff").read_text()
    newest = (repository / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert newest.startswith(version)


def test_annotations_are_part_of_the_package(repository):
    assert (repository / "seq2seq_jax" / "py.typed").exists()
