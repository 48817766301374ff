"""A loop's declared features: the fields, their crosses, and the number of columns that all other fields share.

{"context": {"persona": {"type": "categorical", "levels": ["a", "b"]},
             "hour": {"type": "numeric", "min": 0, "max": 23}},
 "item": {"category": {"type": "categorical", "levels": ["x", "y"]}, "taste": {"type": "vector", "size": 16}},
 "crosses": [["persona", "category"]], "hash_dims": 31}
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, model_validator

from service.represent.fields import CLOSED, MAX_STRING, AnyField

MAX_COLUMNS = 4096  # beside the bias

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STRING)]


class FeatureSchema(BaseModel):
    """A loop's features. The empty schema hashes every field into 31 columns.

    `crosses` are pairs (context field, item field). All undeclared fields share `hash_dims` columns, 0 to 4096; with 0
    they are ignored. With `item_ids`, an item without features has its id as its one undeclared field, so that items
    can be told apart. A row has at most 4096 columns beside the bias.
    """

    model_config = CLOSED

    context: dict[Name, AnyField] = {}
    item: dict[Name, AnyField] = {}
    crosses: list[tuple[str, str]] = []
    hash_dims: int = Field(default=31, strict=True, ge=0, le=MAX_COLUMNS)
    item_ids: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> FeatureSchema:
        seen: set[tuple[str, str]] = set()
        for cross in self.crosses:
            for side, name, declared in zip(("context", "item"), cross, (self.context, self.item), strict=True):
                if name not in declared:
                    raise ValueError(f"cross {list(cross)}: {name!r} is not a declared {side} field")
            if cross in seen:
                raise ValueError(f"cross {list(cross)} is listed twice")
            seen.add(cross)
        if self.d - 1 > MAX_COLUMNS:
            raise ValueError(f"the schema has {self.d - 1} columns; at most {MAX_COLUMNS} are allowed")
        return self

    @property
    def declares(self) -> bool:
        """Whether it says anything about the features; if not, the service is to find out by itself."""
        return self.model_dump(exclude={"item_ids"}) != FeatureSchema().model_dump(exclude={"item_ids"})

    @property
    def d(self) -> int:
        """Columns of an encoded row: the bias, the declared fields, their crosses, the hashed ones."""
        fields = sum(len(field.columns) for field in (*self.context.values(), *self.item.values()))
        crosses = sum(len(self.context[c].columns) * len(self.item[i].columns) for c, i in self.crosses)
        return 1 + fields + crosses + self.hash_dims
