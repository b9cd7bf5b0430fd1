"""Models of a run go to the Hub while it trains: the training neither waits for that nor fails with it."""

import logging
import queue
import threading
from pathlib import Path

from ..hub.client import HubUnreachable, connect, full_name
from ..hub.documents import SETTINGS, title_of
from ..hub.pushing import Revision, create_repository, push_revisions
from ..hub.repository import PushFolder, repository_of_run


logger = logging.getLogger(__name__)


class Publisher:
    """Sends models of a run to its repository, one after the other, in a thread of its own.

    Args:
        run: the folder of the run.
        repo_id: "org/name", or a name in the user's namespace.
        private: whether a new repository is; None for the default of the namespace.
        token: of the Hub; None for that of HF_TOKEN or `hf auth login`.

    Attributes:
        repo_id: "org/name".
        failures: what could not be pushed, and why.

    Raises:
        PushFailed: if there is no token, it is not valid, or it may not write there.
    """

    def __init__(self, run: Path, repo_id: str, private: bool | None = None, token: str | None = None):
        self.run, self.private, self.token, self.repo_id = run, private, token, repo_id
        self.failures: list[str] = []
        api = connect(token)
        try:
            self.repo_id = full_name(api, repo_id)
            create_repository(api, self.repo_id, private)
        except HubUnreachable as error:  # which must not keep a run from going on that a scheduler has started again
            self._note("making the repository", error)
        self._waiting: queue.Queue = queue.Queue()
        # A daemon, so that a run that is told to end does not wait: a commit is there as a whole or not at all
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def is_busy(self) -> bool:
        """Whether anything is still to be sent."""
        return self._waiting.unfinished_tasks > 0

    def send(self, folder: Path, which: int | str | None, title: str | None = None):
        """Push the model of a folder as it is now, whatever becomes of the folder.

        Args:
            which: the step of a checkpoint, "stage-K", or None for the end of the run.
            title: of the commit; by default what of the run it is.
        """
        target = None
        try:
            target = PushFolder(self.run)
            place = Path(target.name)
            documents = repository_of_run(self.run, folder, which, place, self.repo_id)
        except Exception as error:  # here, too: whatever it is, the training goes on
            if target is not None:
                target.cleanup()
            self._note(str(folder), error)
            return
        tag = which if isinstance(which, str) else None
        run_id = documents[SETTINGS].get("run_id")
        self._waiting.put((Revision(place, title or title_of(documents), tag), run_id, target))

    def wait(self):
        """Until all is sent, or has failed."""
        self._waiting.join()

    def _serve(self):
        while True:
            revision, run_id, target = self._waiting.get()
            try:
                push_revisions([revision], self.repo_id, self.private, self.token, run_id)
            except Exception as error:  # of any library: told, and the training goes on
                self._note(revision.title, error)
            finally:
                target.cleanup()
                self._waiting.task_done()

    def _note(self, what: str, error: Exception):
        self.failures.append(f"{what}: {' '.join(str(error).split())}")
        logger.warning(f"the Hub: {self.failures[-1]}. The training goes on")
