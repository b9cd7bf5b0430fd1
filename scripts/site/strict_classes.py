"""Tells the reference what griffe does not know: a class that huggingface_hub's `strict` decorates is a dataclass, so
its fields, with their defaults, are the parameters of its constructor.
"""

import griffe


class StrictClasses(griffe.Extension):
    def on_class_members(self, *, cls: griffe.Class, **_):
        if "__init__" in cls.members or not any(str(decorator.value) == "strict" for decorator in cls.decorators):
            return
        parameters = [
            griffe.Parameter(
                name, annotation=field.annotation, kind=griffe.ParameterKind.keyword_only, default=field.value
            )
            for name, field in cls.attributes.items()
            # Not those of the class alone
            if field.annotation is not None and {"class-attribute", "instance-attribute"} <= field.labels
        ]
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters)))
