"""What the CLIP-like rewards share: their networks, and the cosine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchgrpo.errors import UserError
from branchgrpo.models.files import check_weights, json_file
from branchgrpo.rewards.base import BYTES, Footprint, PictureScorer
from branchgrpo.rewards.common.checkpoints import difference, fit, given, read_state
from branchgrpo.types import F32, U8

if TYPE_CHECKING:
    from torch import Tensor, nn

    from branchgrpo.rewards.base import PictureOptions


class CosineScorer(PictureScorer):
    """The cosine of a picture's and its prompt's features, times `factor`."""

    factor: float = 1.0

    @abstractmethod
    def images(self, pictures: U8) -> Tensor:
        """Features [B, D] of pictures u8 [B, H, W, 3]."""

    @abstractmethod
    def texts(self, texts: list[str]) -> Tensor:
        """Features [B, D] of texts; what the encoder cannot take of a text is cut off."""

    def pictures(self, pictures: U8, prompts: list[str]) -> F32:
        import torch
        from torch.nn.functional import normalize

        different = list(dict.fromkeys(prompts))  # leaves of a tree share their prompt
        rows = [different.index(prompt) for prompt in prompts]
        with torch.inference_mode():
            image, text = (
                normalize(features.float(), dim=-1)
                for features in (self.images(pictures), self.texts(different))
            )
            scores: F32 = (self.factor * (image * text[rows]).sum(-1)).cpu().numpy()
        return scores

    def pictured(self, pictures: U8) -> F32:
        import torch
        from torch.nn.functional import normalize

        with torch.inference_mode():
            found: F32 = normalize(self.images(pictures).float(), dim=-1).cpu().numpy()
        return found


def check_clip(key: str, path: str) -> Path:
    """A folder that transformers' CLIPModel.save_pretrained wrote. Raises UserError where it is
    none."""
    folder = given(key, path, "a transformers CLIPModel folder")
    kind = json_file(key, folder / "config.json").get("model_type")
    if kind != "clip":
        raise UserError(
            f"{key}: expected a transformers CLIPModel folder (model_type clip), got "
            f"model_type {kind} in {folder / 'config.json'}"
        )
    check_weights(key, folder)
    return folder


def load_clip(key: str, folder: Path, options: PictureOptions, device: str) -> Any:
    """The CLIPModel of a folder, in the options' dtype. Raises UserError where its weights do not
    fill it."""
    import torch
    from transformers import CLIPModel

    model, found = CLIPModel.from_pretrained(
        folder,
        dtype=getattr(torch, options.dtype),
        local_files_only=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    differ: list[tuple[str, object, object]] = sorted(
        (name, tuple(wanted), tuple(got)) for name, got, wanted in found["mismatched_keys"]
    )
    state = model.state_dict()
    differ += [(name, tuple(state[name].shape), None) for name in sorted(found["missing_keys"])]
    if differ:
        raise UserError(difference(key, folder, *differ[0], len(differ)))
    return model.eval().to(device)


def architecture(key: str, model: str) -> dict[str, Any]:
    """open_clip's configuration of a named model or in a JSON file, as {"model_cfg": …,
    "preprocess_cfg": …}.

    Raises UserError for an unknown name, a file that is none, and a model whose text encoder or
    tokenizer open_clip would fetch from elsewhere.
    """
    spec = find_spec("open_clip")
    assert spec and spec.origin  # a dependency of this package
    known = Path(spec.origin).parent / "model_configs"
    path = (
        Path(model).expanduser()
        if model.endswith(".json")
        else known / f"{model.replace('/', '-')}.json"
    )
    if not model.endswith(".json") and not path.is_file():
        raise UserError(
            f"{key}: expected a name that open_clip knows (ViT-H-14, ViT-L-14, …) or a "
            f".json file, got {model!r}"
        )
    found = json_file(key, path)
    found = found if "model_cfg" in found else {"model_cfg": found}
    lacking = [
        name for name in ("embed_dim", "vision_cfg", "text_cfg") if name not in found["model_cfg"]
    ]
    if lacking:
        raise UserError(f"{key}: expected an open_clip model config, {path} has no {lacking[0]}")
    foreign = [
        name
        for name in ("hf_model_name", "hf_tokenizer_name")
        if name in found["model_cfg"]["text_cfg"]
    ]
    if foreign or "multimodal_cfg" in found["model_cfg"]:
        raise UserError(
            f"{key}: expected a CLIP with open_clip's own text encoder and tokenizer, "
            f"{path} has {(*foreign, 'multimodal_cfg')[0]}"
        )
    return found


def footprint(options: PictureOptions, config: Mapping[str, Any], frames: int) -> Footprint:
    """Of a CLIP with open_clip's configuration, from its sizes: a layer of width w has 12 w² + 13 w
    weights, and computes 2 · 12 w² for a token and 4 w for a pair of tokens. Texts are few beside
    pictures, and left out."""
    parts = config["model_cfg"]
    seeing, reading, joint = parts["vision_cfg"], parts["text_cfg"], parts["embed_dim"]
    width, layers = seeing["width"], seeing["layers"]
    tokens = (seeing["image_size"] // seeing["patch_size"]) ** 2 + 1
    entry = 3 * seeing["patch_size"] ** 2 * width
    picture = layers * (12 * width**2 + 13 * width) + entry + (tokens + 5 + joint) * width
    wide, words = reading["width"], reading["vocab_size"] + reading["context_length"]
    text = reading["layers"] * (12 * wide**2 + 13 * wide) + (words + 2 + joint) * wide
    shown = min(frames, options.frames)
    each = BYTES[options.dtype]
    return Footprint(
        weights=each * float(picture + text + 1),
        activations=each * 8.0 * options.batch * tokens * width,
        flops=shown * float(tokens * (layers * (24 * width**2 + 4 * tokens * width) + 2 * entry)),
    )


class OpenClipScorer(CosineScorer):
    """An open_clip network with its weights."""

    def __init__(
        self, options: PictureOptions, key: str, config: dict[str, Any], path: Path, device: str
    ):
        import torch
        from open_clip import CLIP, CustomTextCLIP, SimpleTokenizer

        super().__init__(options)
        parts, text = dict(config["model_cfg"]), config["model_cfg"]["text_cfg"]
        kind = CustomTextCLIP if parts.pop("custom_text", False) else CLIP
        self.network = kind(**parts)
        fit(key, path, self.network, read_state(key, path))
        self.device, self.dtype = device, getattr(torch, options.dtype)
        self.network.eval().to(device, self.dtype)
        self.tokenizer = SimpleTokenizer(
            context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {})
        )

    def networks(self) -> Iterable[nn.Module]:
        return (self.network,)

    @abstractmethod
    def prepared(self, pictures: U8) -> Tensor:
        """What the network takes, [B, 3, size, size], of pictures u8 [B, H, W, 3]."""

    def images(self, pictures: U8) -> Tensor:
        features: Tensor = self.network.encode_image(
            self.prepared(pictures).to(self.device, self.dtype)
        )
        return features

    def texts(self, texts: list[str]) -> Tensor:
        features: Tensor = self.network.encode_text(self.tokenizer(texts).to(self.device))
        return features
