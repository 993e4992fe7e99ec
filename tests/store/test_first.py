from annotator.records import Answer
from annotator.store import LabelStore
from tests.conftest import new_image


def test_roundtrip(store: LabelStore) -> None:
    src = store.images.register_source("/x", "folder", "folder")
    recs = store.images.add(src, [new_image(f"a{i}", votes={"anger": 6, "fear": 4}) for i in range(5)], "annotations")
    assert [r.row for r in recs] == list(range(5))
    u = store.accounts.local_user()
    s = store.decisions.submit(u, Answer("c1", recs[0].image_id, "label", ("fear",)))
    assert s.created and store.decisions.label(0).classes == ("fear",)
    assert store.decisions.get(s.annotation.id) == s.annotation
    z = store.decisions.undo(u, "c2", s.annotation.id)
    assert store.decisions.label(0).classes == ("anger",)
    assert store.last_seq() == 7
    print(store.images.table(), store.images.counts(), store.decisions.label_view(), store.decisions.label_counts())
    assert store.decisions.rebuild() == 0
