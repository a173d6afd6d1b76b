"""The windows that a reader of the stream needs now, and those that it needs next."""

from __future__ import annotations

import math
import threading
from contextlib import suppress

from raysid.data.order import Order, Window
from raysid.data.source import check_faults
from raysid.data.windows import Loaded, Passes, ReadBlocks
from raysid.errors import RunFailed, UserError

CLOSE_SECONDS = 5.0


class Reader:
    """The windows of a stream's reader, kept until they are no longer needed.

    Windows are read in the order in which they are needed. A request for another one, before or after, restarts the
    reading there.

    Args:
        read_blocks: reads pieces of the source, the same images each time.
        order: the windows' images.
        lanes: the lanes that are read; the lane of any other requested window is added.
        max_bad_fraction: fraction of the set's images that may be bad.
        what: the kind of the rows, for messages.
        ahead: read in a thread, as many images in advance as the lanes' windows hold; otherwise read in `load`.

    Attributes:
        faults: the fault of each bad image read so far, by its index in the source's list.
    """

    def __init__(
        self,
        read_blocks: ReadBlocks,
        order: Order,
        lanes: set[int],
        max_bad_fraction: float,
        ahead: bool,
        what: str = "real images",
    ) -> None:
        self.what = what
        self.read_blocks = read_blocks
        self.order = order
        self.lanes = lanes
        self.max_bad_fraction = max_bad_fraction
        self.faults: dict[int, str] = {}
        self._changed = threading.Condition()  # guards the attributes below
        self._loaded: dict[Window, Loaded] = {}
        self._floor = 0  # no window before this position is kept or read
        self._passes: Passes | None = None
        self._failed: tuple[Window, BaseException] | None = None  # the failed window, its error
        self._went_back = False  # since the pass began
        self._wanted: Window | None = None  # a caller waits for it
        self._stopping = False
        self._thread: threading.Thread | None = None
        if ahead:
            self._thread = threading.Thread(target=self._read_on, name="raysid-images", daemon=True)
            self._thread.start()

    def load(self, window: Window, floor: int) -> Loaded:
        """Return a window, after reading it if necessary.

        Args:
            floor: the position before which nothing is needed any more; a lower one than before reads again.

        Raises:
            RunFailed: the source can no longer be read, or too many images are bad.
            RuntimeError: closed during the call.
            Exception: whatever `read_blocks` raises; the next call reads again.
        """
        with self._changed:
            self._move_to(floor)
            if window in self._loaded:
                return self._loaded[window]
            self._raise_error(window)
            if not self._will_reach(window):
                self.lanes.add(window.lane)
                self._passes_from(floor)
            self._wanted = window
            self._changed.notify_all()
            try:
                while window not in self._loaded:
                    self._raise_error(window)
                    if self._stopping:
                        raise RuntimeError(f"the stream of {self.what} was closed during a read")
                    if self._passes is None:  # it failed at a window that nobody waits for any more
                        self._passes_from(floor)
                    if self._thread is not None:
                        self._changed.wait()
                    else:
                        assert self._passes is not None
                        self._read_next(self._passes)
            finally:
                self._wanted = None
            return self._loaded[window]

    def loaded_until(self, position: int) -> float:
        """Return the end of the consecutive positions, from one on, that are loaded; infinity if all are, for ever."""
        with self._changed:
            for window in self.order.windows_from(position, self.lanes):
                if window not in self._loaded:
                    return max(position, window.begin)
        return math.inf

    def stop(self) -> None:
        """End the reading after the current block, without waiting."""
        self._stopping = True
        if (passes := self._passes) is not None:  # before the lock, which a read without a thread holds
            passes.abandoned = True
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and wait up to `CLOSE_SECONDS` for the thread."""
        self.stop()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
        elif self._passes is not None:
            _close(self._passes)

    def _move_to(self, floor: int) -> None:
        if floor == self._floor:
            return
        self._went_back = self._went_back or floor < self._floor
        self._floor = floor
        if not self.order.held:
            for window in [window for window in self._loaded if window.end <= floor]:
                del self._loaded[window]
        self._changed.notify_all()

    def _will_reach(self, window: Window) -> bool:
        """True if the current pass reaches a window, through windows that are needed anyway."""
        following = self._passes.following if self._passes is not None else None
        return (
            following is not None
            and not self._went_back  # the pass may have begun after it, or left it out
            and window.lane in self.lanes
            and self._is_before(following, window)
        )

    def _is_before(self, other: Window, window: Window) -> bool:
        """True if a window is before another one, or the same, and is still needed."""
        return other.begin <= window.begin and (other.end > self._floor or self.order.held)

    def _passes_from(self, floor: int) -> None:
        before = self._passes
        if before is not None:
            before.abandoned = True
            if self._thread is None:
                _close(before)  # the thread closes its own pass, whose blocks belong to it
        if not self.order.held:  # windows ahead of the old position may be far from the new one
            soon = floor + self.order.batch_size
            self._loaded = {window: loaded for window, loaded in self._loaded.items() if window.begin < soon}
        held = set(self._loaded)
        coming = self.order.windows_from(floor, sorted(self.lanes))
        self._passes = Passes(
            self.read_blocks, self.order, (window for window in coming if window not in held), self.what
        )
        self._went_back = False
        self._changed.notify_all()

    def _raise_error(self, window: Window) -> None:
        """Raise the error that stopped the reading before a window."""
        failed, self._failed = self._failed, None
        if failed is not None and self._is_before(failed[0], window):
            raise failed[1]

    def _read_on(self) -> None:
        """The thread: read the next window while there is room for it or a caller waits."""
        passes: Passes | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._has_room())
                before, passes = passes, self._passes
                stopping = self._stopping
            if before is not None and (stopping or before is not passes):
                _close(before)
            if stopping:
                return
            assert passes is not None
            self._read_next(passes)

    def _has_room(self) -> bool:
        if self._passes is None or self._passes.following is None:
            return False
        if self._wanted is not None and self._wanted not in self._loaded:
            return True
        soon = self._floor + self.order.batch_size
        ahead = sum(window.size for window in self._loaded if window.begin >= soon)
        return ahead < len(self.lanes) * self.order.window

    def _read_next(self, passes: Passes) -> None:
        """Read a window, or keep its error for the caller that needs it."""
        window = passes.following
        assert window is not None  # callers check that there is one
        loaded: Loaded | None = None
        error: BaseException | None = None
        faults = self.faults
        try:
            loaded = passes.read()
            faults = faults | loaded.faults  # a new dict: readers of the attribute take no lock
            check_faults(faults, self.max_bad_fraction, self.order.num_images, self.what)
        except UserError as refused:  # the source could be read when the run began
            error = RunFailed(f"{refused}; run the same command to resume")
            error.__cause__ = refused
        except BaseException as raised:  # of any kind: it must reach the caller that waits, in another thread
            error = raised
        if error is not None:
            _close(passes)
        with self._changed:
            if self._passes is passes:
                self.faults = faults
                if error is not None:
                    self._passes, self._failed = None, (window, error)
                elif loaded is not None:
                    self._loaded[window] = loaded
                    passes.advance()
                self._changed.notify_all()


def _close(passes: Passes) -> None:
    """Close an abandoned pass, ignoring its errors."""
    with suppress(Exception):
        passes.close()
