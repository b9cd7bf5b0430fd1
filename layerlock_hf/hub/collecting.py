"""Models of a family side by side on the Hub."""

from collections.abc import Iterable

from huggingface_hub import Collection

from .client import ask, connect


def update_collection(
    title: str,
    namespace: str,
    items: Iterable[tuple[str, str]],
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Make a collection of models, or update the one of this title: what it holds besides stays.

    Args:
        namespace: user or organization.
        items: (repo_id, note) of each model.
        private: whether a new collection is; None for public, as the Hub has it.
        token: of the Hub; None for that of HF_TOKEN or `hf auth login`.

    Returns:
        The address of the collection.

    Raises:
        PushFailed: if the Hub refuses or does not answer.
    """
    api = connect(token)
    items = list(items)

    def update() -> Collection:
        # The Hub allows one collection of a title per namespace, and answers with it
        collection = api.create_collection(title, namespace=namespace, private=bool(private), exists_ok=True)
        present = {item.item_id: item for item in collection.items if item.item_type == "model"}
        for repo_id, note in items:
            if repo_id not in present:
                api.add_collection_item(collection.slug, repo_id, "model", note=note, exists_ok=True)
            elif present[repo_id].note != note:
                api.update_collection_item(collection.slug, present[repo_id].item_object_id, note=note)
        return collection

    return ask(f"collection: {namespace}/{title}", "updating it", update).url
