import hashlib
import json
from importlib import resources

import pytest
import torch

from latentfit.errors import FileFormatError
from latentfit_bench import classifier
from latentfit_bench.classifier import SHA256, load_classifier
from latentfit_bench.datasets import binarize, load_digits

WEIGHTS = resources.files("latentfit_bench") / "weights"


def accuracy(task, images, labels):
    _, logits = load_classifier(task).model.features(binarize(images, "threshold"))
    return (logits.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("task", SHA256)
def test_the_weights_are_small_and_their_hash_is_known(task):
    content = (WEIGHTS / f"{task}.safetensors").read_bytes()
    assert len(content) < 1_000_000
    assert hashlib.sha256(content).hexdigest() == SHA256[task]
    provenance = json.loads((WEIGHTS / f"{task}.json").read_text())
    assert provenance["sha256"] == SHA256[task]
    assert provenance["bytes"] == len(content)


@pytest.mark.mnist
def test_the_mnist_accuracy_is_what_is_claimed(mnist):
    measured = accuracy("mnist", mnist.test_images, mnist.test_labels)
    assert measured >= 0.992
    claimed = load_classifier("mnist").provenance["test_accuracy"]
    # An image on the boundary may fall to either side on another machine.
    assert measured == pytest.approx(claimed, abs=2e-4)


def test_the_digits_accuracy_is_what_is_claimed():
    digits = load_digits()
    measured = accuracy("digits", digits.test_images, digits.test_labels)
    assert measured >= 0.96
    claimed = load_classifier("digits").provenance["test_accuracy"]
    assert measured == pytest.approx(claimed, abs=2e-3)


@pytest.mark.parametrize("task", SHA256)
def test_features_are_the_networks_and_independent_of_the_batch(task):
    loaded = load_classifier(task)
    pixels = loaded.model.side**2
    images = torch.bernoulli(torch.full((10, pixels), 0.3), generator=torch.Generator())
    penultimate, logits = loaded.model.features(images)
    assert penultimate.shape == (10, 128)
    with torch.inference_mode():
        torch.testing.assert_close(logits, loaded.model(images))
    pieces = loaded.model.features(images, batch_size=3)
    torch.testing.assert_close(pieces[0], penultimate, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pieces[1], logits, rtol=1e-4, atol=1e-4)


def test_loading_leaves_the_global_rng_alone():
    before = torch.random.get_rng_state()
    load_classifier("digits")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_other_weights_are_refused_with_both_hashes(monkeypatch):
    monkeypatch.setitem(classifier.SHA256, "digits", "0" * 64)
    with pytest.raises(FileFormatError, match="0" * 64) as caught:
        load_classifier("digits")
    published = json.loads((WEIGHTS / "digits.json").read_text())["sha256"]
    assert published in str(caught.value)


def test_features_in_training_mode_are_refused():
    model = load_classifier("digits").model.train()
    with pytest.raises(RuntimeError, match="eval"):
        model.features(torch.zeros(2, 64))
