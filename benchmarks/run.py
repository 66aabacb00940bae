"""Time the package beside its peers, both in one run, as ratios; print peak memory beside each.

``make bench``. Ours and the peer's are timed in turn, the first of a round changing, so that whatever else the machine
does hits both; a ratio is the median over rounds of ours over the peer's in the same round. As in ``timeit``, garbage
is collected between the timings and not in them. Peak memory is that of a fresh process (resident
set, with Python and PyTorch in it) or, on a GPU, what PyTorch allocated.
"""

import gc
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import resbook
import torch
import torchinfo
import torchvision
from resbook.data import Data
from resbook.recipes import crop_and_flip
from resbook.training import batches, train
from torch.nn import functional as F

DEVICE = resbook.default_device()


def training_step(build):
    model = build().to(DEVICE)
    images, labels = torch.randn(8, 3, 224, 224, device=DEVICE), torch.arange(8, device=DEVICE)

    def step():
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()

    return step


def gradient_trace():
    model = resbook.resnet18().to(DEVICE)
    images, labels = torch.randn(8, 3, 224, 224, device=DEVICE), torch.arange(8, device=DEVICE)
    return lambda: resbook.trace_gradients(model, images, labels)


def shape_trace():
    model = resbook.resnet152()
    return lambda: resbook.trace_shapes(model, (3, 224, 224))


def summary(batch):
    model = torchvision.models.resnet152()
    return lambda: torchinfo.summary(model, (batch, 3, 224, 224), verbose=0)


def cifar_data(steps=4, batch=128):
    """Noise in the shape of CIFAR-10, with one image to test on: training is what is timed."""
    images, labels = torch.randn(steps * batch, 3, 32, 32), torch.arange(steps * batch) % 10
    return Data(images, labels, images[:1], labels[:1], tuple("0123456789")).to(DEVICE)


def our_loop(**options):
    model, data = resbook.cifar_resnet(20).to(DEVICE), cifar_data()
    return lambda: train(model, data, epochs=1, augment=crop_and_flip, **options)


def bare_loop():
    """The same network, images, order, augmentation and optimiser, and nothing else."""
    model, data, generator = resbook.cifar_resnet(20).to(DEVICE), cifar_data(), torch.Generator()

    def loop():
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        model.train()
        for chosen in torch.randperm(len(data.train_images), generator=generator).to(DEVICE).split(128):
            images = crop_and_flip(data.train_images[chosen], generator)
            loss = F.cross_entropy(model(images), data.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return loop


def data_loading():
    data, generator = cifar_data(), torch.Generator()
    return lambda: [images.sum() for images, _ in batches(data, 128, generator, crop_and_flip)]


# what is compared: (ours, the peer's, how often, what is wanted of ours over the peer's)
CASES = {
    "ResNet-18, forward + backward, over torchvision": (
        lambda: training_step(resbook.resnet18), lambda: training_step(torchvision.models.resnet18), 15, "at most 1.02",
    ),
    "ResNet-50, forward + backward, over torchvision": (
        lambda: training_step(resbook.resnet50), lambda: training_step(torchvision.models.resnet50), 15, "at most 1.02",
    ),
    "trace_shapes(resnet152), over torchinfo, batch 1": (shape_trace, lambda: summary(1), 21, "at most 1/40"),
    "trace_shapes(resnet152), over torchinfo, batch 8": (shape_trace, lambda: summary(8), 11, "at most 1/40"),
    "trace_gradients(resnet18), over forward + backward": (
        gradient_trace, lambda: training_step(resbook.resnet18), 15, "at most 1.10",
    ),
    "ResNet-20, 4 steps of train, over a bare loop": (our_loop, bare_loop, 11, "at most 1.03"),
    "the same, its data loading and augmentation alone": (data_loading, bare_loop, 11, "at most 0.05"),
    "the same, channels_last over contiguous": (lambda: our_loop(channels_last=True), our_loop, 7, "below 1"),
    "the same, bf16 and channels_last over float32": (
        lambda: our_loop(bf16=True, channels_last=True), our_loop, 7, "as it is",
    ),
}  # fmt: skip


def seconds(step):
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    gc.enable()
    return elapsed


def peak_mebibytes():
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss of a fresh process begins with its parent's
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compare(name):
    ours, peers, rounds, wanted = CASES[name]
    steps = ours(), peers()
    for step in steps:
        step()  # warm up
    times = []
    for i in range(rounds):
        order = (0, 1) if i % 2 else (1, 0)
        elapsed = {which: seconds(steps[which]) for which in order}
        times.append((elapsed[0], elapsed[1]))
    ratio = statistics.median(a / b for a, b in times)
    mine, other = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    memory = [subprocess.check_output([sys.executable, __file__, name, which], text=True) for which in ("0", "1")]
    shown = f"{ratio:.3f}" if ratio > 0.1 else f"1/{1 / ratio:.0f}"
    print(
        f"{name:52} {mine:8.1f} {other:9.1f} {shown:>7}  {wanted:12} {int(memory[0]):7} {int(memory[1]):7}", flush=True
    )


def throughput(name, model, shape, batch, steps=30):
    """Print images per second of training, and the floating-point operations that they are."""
    flops = 6 * resbook.trace_shapes(model, shape).macs  # a MAC is two; the way back costs twice the way there
    images = torch.randn(steps * batch, *shape, device=DEVICE)
    labels = torch.arange(steps * batch, device=DEVICE) % 10
    data = Data(images, labels, images[:1], labels[:1], tuple("0123456789"))
    model.to(DEVICE)
    elapsed = [seconds(lambda: train(model, data, epochs=1, batch_size=batch, bf16=True, channels_last=True))
               for _ in range(3)]  # fmt: skip
    rate = steps * batch / min(elapsed)
    print(f"{name:52} {rate:12,.0f} images/s, {rate * flops / 1e12:6.1f} TFLOP/s")


def main():
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{where}; torch {torch.__version__}, torchvision {torchvision.__version__}, torchinfo {torchinfo.__version__}"
    )
    print(f"{'what':52} {'ours ms':>8} {'peer ms':>9} {'ratio':>7}  {'wanted':12} {'MiB':>7} {'peer':>7}")
    for name in CASES:
        compare(name)
    if DEVICE.type == "cuda":
        throughput("ResNet-20, 3x32x32, batch 1024, bf16", resbook.cifar_resnet(20), (3, 32, 32), 1024)
        throughput("ResNet-18, 3x224x224, batch 256, bf16", resbook.resnet18(), (3, 224, 224), 256)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        step = CASES[sys.argv[1]][int(sys.argv[2])]()
        for _ in range(2):
            step()
        print(int(peak_mebibytes()))
    else:
        main()
