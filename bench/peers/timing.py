# SPDX-License-Identifier: MIT
"""How the peers' scripts take times: medians over repeats, on the device by events, on the host by the clock."""
import statistics
import time


def device_median_ms(work, repeats=15, warm=5, flush=None):
    """Milliseconds of `work` on the CUDA device. `flush`, larger than the second-level cache, is written before each repeat:
    three times, long enough to hide the time in which the host calls the work."""
    import torch  # the others time the host without it

    times = []
    for i in range(warm + repeats):
        for _ in range(3 if flush is not None else 0):
            flush.zero_()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()
        stop.synchronize()
        if i >= warm:
            times.append(start.elapsed_time(stop))
    return statistics.median(times)


def host_times_ms(work, repeats=3, seconds=0.0):
    """Milliseconds of `work` on the host, of at least `repeats` calls that last `seconds` together, after one that does not count:
    the median by the clock, and the least processor time of all threads, which other work on the machine disturbs less."""
    work()
    times, processor, begin = [], [], time.perf_counter()
    while len(times) < repeats or time.perf_counter() - begin < seconds:
        start, start_processor = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - start) * 1e3)
        processor.append((time.process_time() - start_processor) * 1e3)
    return statistics.median(times), min(processor)


def host_median_ms(work, repeats=3, seconds=0.0):
    """The first of `host_times_ms`."""
    return host_times_ms(work, repeats, seconds)[0]
