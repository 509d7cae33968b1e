"""``save_pretrained`` and ``from_pretrained`` of cut transformers, in a new process, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.core.nested import tensors_in
from prunus.core.torchvision_ops import declare_torchvision_operators

IDS = torch.arange(16).reshape(2, 8) % 7
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 50}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
MODELS = {
    "BertForSequenceClassification": ("BertConfig", {**SMALL, "num_labels": 3}),
    "Qwen2ForCausalLM": (
        "Qwen2Config",
        {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True, **SPECIAL},
    ),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 50, **SPECIAL}),
    "ViTForImageClassification": ("ViTConfig", {**SMALL, "image_size": 16, "patch_size": 4, "num_labels": 3}),
}
LOAD = """
import sys, torch
{imports}
import transformers
torch.set_num_threads(1)
for place in sys.argv[1:]:
    name, _, folder = place.partition("=")
    model = getattr(transformers, name).from_pretrained(folder, dtype="auto")
    inputs, expected = torch.load(folder + "/example.pt", weights_only=True)
    with torch.no_grad():
        found = [v for v in model(**inputs).values() if isinstance(v, torch.Tensor)]
    assert len(found) == len(expected) > 0, place
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected)), place
    import prunus
    assert prunus.plan_of(model) is not None and model.config.quantization_config["quant_method"] == "prunus"
    assert not getattr(model, "is_quantized", False) and not hasattr(model, "hf_quantizer")
print("equal")
"""
DECLARE = "from prunus.core.torchvision_ops import declare_torchvision_operators as declare; declare()"


@pytest.fixture(scope="module")
def transformers():
    declare_torchvision_operators()
    return pytest.importorskip("transformers", minversion="5", reason="transformers 5 is not installed")


def build(transformers, name, **more):
    torch.manual_seed(0)
    config, settings = MODELS[name]
    return getattr(transformers, name)(getattr(transformers, config)(**settings, **more)).eval()


def example(model):
    if "pixel_values" in model.main_input_name:
        torch.manual_seed(1)
        return {"pixel_values": torch.randn(2, 3, 16, 16, dtype=model.dtype)}
    return {"input_ids": IDS, **({"use_cache": False} if model.can_generate() else {})}


def cut(model, params=0.7):
    return prunus.prune_(model, example(model), budget=prunus.Budget(params=params), allocator="uniform", verify=False)


def save(model, folder, **options):
    """The folder, with what the model gives for the example beside it."""
    model.save_pretrained(folder, **options)
    inputs = example(model)
    with torch.no_grad():
        torch.save((inputs, list(tensors_in(dict(model(**inputs))))), Path(folder) / "example.pt")


def load(*places, imports=DECLARE):
    """Load every ``CLASS=folder`` in one new process, and compare what it gives for the example to the bit."""
    run = subprocess.run(
        [sys.executable, "-c", LOAD.format(imports=imports), *places],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(prunus.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    assert run.stdout.strip() == "equal", run.stderr[-2000:]


def test_a_new_process_loads_the_same_networks_to_the_bit(transformers, tmp_path):
    loaders = dict(zip(MODELS, ("Bert", "AutoModel", "AutoModel", "ViT")))
    places = []
    for name, loader in loaders.items():
        model, folder = build(transformers, name), tmp_path / name
        report = cut(model)
        assert report.after["params"] <= 0.7 * report.before["params"]
        save(model, folder)
        assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".pt"}
        stored = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert prunus.Plan.from_json(stored["plan"]) == prunus.plan_of(model)
        task = name[name.index("For") :] if "For" in name else "ForCausalLM"
        places.append(f"{loader}{task}={folder}")
    load(*places)


def test_transformers_may_be_imported_first_and_bf16_shards_and_ties_are_kept(transformers, tmp_path):
    config, settings = MODELS["Qwen2ForCausalLM"]
    config = getattr(transformers, config)(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    cut(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    save(model, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    load(f"Qwen2ForCausalLM={tmp_path}", imports=f"{DECLARE}\nimport transformers.quantizers.auto\nimport prunus")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, device_map=None)
    assert again.dtype == torch.bfloat16 and again.lm_head.weight is again.model.embed_tokens.weight


def test_what_was_loaded_is_cut_saved_trained_and_cast_again(transformers, tmp_path):
    cut(model := build(transformers, "BertForSequenceClassification"))
    model.save_pretrained(tmp_path / "once")
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "once")
    once = prunus.plan_of(model)
    cut(model, 0.8)
    assert prunus.plan_of(model).tensors != once.tensors
    inputs, folder = example(model), tmp_path / "twice"
    model.save_pretrained(folder)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert prunus.plan_of(again) == prunus.plan_of(model)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert model.half().dtype == torch.float16
    model.float().train()(input_ids=IDS, labels=torch.zeros(2, dtype=torch.long)).loss.backward()


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_cut_language_model_generates(transformers, tmp_path, cache):
    model = build(transformers, "Qwen2ForCausalLM")
    cut(model)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    options = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    first, second = (m.generate(IDS, attention_mask=torch.ones_like(IDS), **options) for m in (model, again))
    assert first.shape[1] > IDS.shape[1] and torch.equal(first, second)


def test_the_configuration_tells_the_sizes_that_forward_reads(transformers, tmp_path):
    class Config(transformers.PretrainedConfig):
        model_type = "prunus-test"

        def __init__(self, width=16, **kwargs):
            super().__init__(**kwargs)
            self.width = width

    class Model(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.a, self.b = nn.Linear(4, config.width), nn.Linear(config.width, 2)
            self.post_init()

        def forward(self, x):
            return self.b(self.a(x).view(-1, self.config.width).relu())

    model, x = Model(Config()).eval(), torch.randn(3, 4)
    report = prunus.prune_(model, x, budget=prunus.Budget(params=0.6))
    assert model.config.width == model.a.out_features < 16 and report.verified.max_relative_error < 1e-7
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["width"] == model.a.out_features
    again = Model.from_pretrained(tmp_path)
    assert again.config.width == model.config.width and prunus.plan_of(again) == prunus.plan_of(model)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_a_base_model_and_a_head_load_from_each_other(transformers, tmp_path):
    model = build(transformers, "GPT2LMHeadModel")
    cut(model)
    model.save_pretrained(tmp_path / "head")
    base = transformers.AutoModel.from_pretrained(tmp_path / "head")
    with torch.no_grad():
        assert torch.equal(base(IDS).last_hidden_state, model.transformer(IDS).last_hidden_state)
    base.save_pretrained(tmp_path / "base")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        assert torch.equal(again.transformer(IDS).last_hidden_state, base(IDS).last_hidden_state)
        assert torch.equal(again(IDS).logits, model(IDS).logits)  # the head is tied


def test_a_transformer_inside_another_network_is_saved_by_itself(transformers, tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = build(transformers, "BertForSequenceClassification")
            self.head = nn.Linear(3, 2)

        def forward(self, ids):
            return self.head(self.body(ids).logits)

    net = Wrapped().eval()
    prunus.prune_(net, IDS, budget=prunus.Budget(params=0.7), verify=False)
    net.body.save_pretrained(tmp_path)
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, net.body(IDS).logits)


def test_an_edited_plan_and_another_network_are_clear_errors(transformers, tmp_path):
    model = build(transformers, "BertForSequenceClassification")
    cut(model)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()

    def refuse(content, match):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(prunus.FileError, match=match):
            transformers.BertForSequenceClassification.from_pretrained(tmp_path)

    edited = json.loads(text)
    plan = edited["quantization_config"]["plan"]
    edited["quantization_config"]["plan"] = plan.replace('"kept": {"0": [0', '"kept": {"0": [1')
    refuse(edited, "checksum does not fit: the plan was damaged or edited")
    refuse({**json.loads(text), "hidden_size": 64}, r"of another architecture: it cuts '.*' of shape")
    bare = json.loads(text)
    del bare["quantization_config"]["digest"]
    refuse(bare, "checksum does not fit")


def test_an_uncut_network_is_saved_as_ever(transformers, tmp_path):
    model = build(transformers, "BertForSequenceClassification")
    prunus.trace(model, example(model))
    prunus.prune_(model, example(model), budget=prunus.Budget(params=1.0))
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_head_that_was_replaced_after_the_cut_is_in_the_configuration(transformers, tmp_path, classes):
    model = build(transformers, "BertForSequenceClassification")
    cut(model)
    width = model.classifier.in_features
    assert width < 32
    model.classifier = nn.Linear(width, classes)
    model.config.num_labels = classes
    for folder in ("a", "b"):  # what was loaded is saved again
        model.save_pretrained(tmp_path / folder)
        written = json.loads((tmp_path / folder / "config.json").read_text())
        plan = prunus.Plan.from_json(written["quantization_config"]["plan"])
        assert plan.tensors["classifier.weight"].shape == (classes, 32)
        again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / folder)
        with torch.no_grad():
            assert torch.equal(again(IDS).logits, model(IDS).logits) and again(IDS).logits.shape == (2, classes)
        model = again


def test_a_head_that_the_configuration_does_not_tell_of_is_a_clear_error(transformers, tmp_path):
    model = build(transformers, "BertForSequenceClassification")
    cut(model)
    model.classifier = nn.Linear(model.classifier.in_features, 5)
    model.save_pretrained(tmp_path)
    with pytest.raises(prunus.FileError, match=r"it cuts 'classifier.weight' of shape \(5, 32\)"):
        transformers.BertForSequenceClassification.from_pretrained(tmp_path)
