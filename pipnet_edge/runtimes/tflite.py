"""TFLite through ai-edge-litert, or through tflite-runtime if ai-edge-litert is not installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import Input

if importlib.util.find_spec("ai_edge_litert"):
    from ai_edge_litert.interpreter import Interpreter

    PACKAGE = "ai-edge-litert"
else:
    from tflite_runtime.interpreter import Interpreter

    PACKAGE = "tflite-runtime"

FILES = ("model.tflite",)
# The probe's model as the converters make it, packed as runtimes/probe.py says.
TINY = (
    "c-oy*&ubG=5S~po>6(T#V2CB;kb_WBS<@eiV4(#?6jG4lQCwoO+F-I9l1<JYJcyJYJoVro(4&8VC-KmOe}eysG0$(_o6V*+mnQJ#"
    "y`7!+&3rSnuS!HOpEkBjR3n=l%2Sa_u&q;7uW8@~@C0~e5#AG>0}WsmsAk~{e9d4FoZ5H>Y}g2xz~)%y3>Mn83}+pGA5%m>En_bd"
    "|8iLK$il|X#Hs={U=0}hgK;N#=e7N}%~3bf=SsrMK8~DquwMae$v+%Ll>4KUEw<Jm>~l1Pr)Oe2S4ufL1EL$id*APS!>IYD>mPMP"
    "uN4M(2qHS1<B0|%pJQ@FN5?0+23!YvoxmH6f~eE;y|F(ScEW&8<Sc95bRW2NN`9>Gpz-"
    "{$_BagSANg$;mIC^abfo~xKClDa676v=y=EsM(R+r1{Fa_sQVUDsaE{!cV>qq@pHPGn@C^>OWzLvBn7BEqQ&Hl?d@0jjy`D{#DjW"
    "JTzkfYZie2jxkMR(wT<)QV-Z1)T(Tv{`UdAuYRlr$Og%zm-yRjd~xOriI)^z5%Ij-"
    "0@EA`39%C<K8o;E&dey;pAx$lckM`q*>;CWnS&vOs%Md6@z<OYG;3)`cvKXfr5W0!lk)%IGC?$5NuI(UDoxpR81;~eMfnh{?T8|z"
    ")wtF6y$m{%L@`(rN8?9zGeT*{O29o!Yg{3*?!5&qpP^KWZzJ@c56lW8*l@%I<^;mb79V=t{|>%t7hx{kq}Qzo{fBY)U4pHdm$mxK"
    "Dnw;t)Pn^`v6(@SgLoN3P^_Ggu7|9{3$RH8j4@pymxO7Rk28;WeLA*=7h?A$$p-(IYn7V0MJuJAZ=*OV4~xA7giXnrPItF7Pt1E-"
    "DrdH",
)


def version() -> str:
    """Which of the two packages runs, and its version."""
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"


class Session:
    """Signature with input `crop` (1, H, W, 3) uint8 RGB; names are those of its outputs."""

    def __init__(self, folder: Path, spec: Input, precision: str, threads: int) -> None:
        self._interpreter = interpreter = Interpreter(str(folder / FILES[0]), num_threads=threads)
        signatures = interpreter.get_signature_list()
        key = next(iter(signatures), None)
        if key is None or signatures[key]["inputs"] != ["crop"]:
            raise EdgeError(f"{folder / FILES[0]} has no signature that takes 'crop'")
        self.names = list(signatures[key]["outputs"])
        # The model is run through its tensors. The signature's runner would set their shapes again for every crop, and
        # while a runner exists the interpreter allocates nothing.
        self._crop = _indexes(interpreter.get_signature_runner(key).get_input_details())["crop"]
        self._outputs = _indexes(interpreter.get_signature_runner(key).get_output_details())
        interpreter.allocate_tensors()

    def run(self, crop: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        self._interpreter.set_tensor(self._crop, crop[None])
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

    def close(self) -> None:
        del self._interpreter


def _indexes(details: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    return {name: tensor["index"] for name, tensor in details.items()}


def tiny(folder: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probe's model on a (1, C, H, W) image."""
    return np.asarray(Interpreter(str(folder / FILES[0]), num_threads=1).get_signature_runner()(crop=image)["out"])
