"""The Core tables behind the models of `schema.py`: the hot paths speak Core, not ORM."""

from typing import cast

from sqlalchemy import Table

from annotator.store import exchange_schema, schema

sources = cast(Table, schema.SourceRow.__table__)
images = cast(Table, schema.ImageRow.__table__)
faces = cast(Table, schema.FaceRow.__table__)
users = cast(Table, schema.UserRow.__table__)
tokens = cast(Table, schema.TokenRow.__table__)
annotations = cast(Table, schema.AnnotationRow.__table__)
labels = cast(Table, schema.LabelRowModel.__table__)
leases = cast(Table, schema.LeaseRow.__table__)
snapshots = cast(Table, schema.SnapshotRow.__table__)
generations = cast(Table, schema.GenerationRow.__table__)
jobs = cast(Table, schema.JobRow.__table__)
erasures = cast(Table, schema.ErasureRow.__table__)
meta = cast(Table, schema.MetaRow.__table__)
exchange_links = cast(Table, exchange_schema.ExchangeLinkRow.__table__)
exchange_tasks = cast(Table, exchange_schema.ExchangeTaskRow.__table__)
exchange_answers = cast(Table, exchange_schema.ExchangeAnswerRow.__table__)
exchange_outbox = cast(Table, exchange_schema.ExchangeOutboxRow.__table__)
