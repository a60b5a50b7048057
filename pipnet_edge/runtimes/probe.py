"""A tiny real inference for each runtime: the answer to "does it work on this machine".

The model is one 1x1 convolution, out = image[0] + 2 * image[1] + 0.5, on an image of (1, 2, 2, 2) float32. The files
are those that the converters make of it, compressed; ncnn's is written out.
"""

from __future__ import annotations

import base64
import tempfile
import zlib
from pathlib import Path

import numpy as np

from pipnet_edge import runtimes
from pipnet_edge.errors import EdgeError

NCNN_PARAM = b"""7767517
2 2
Input image 0 1 image 0=2 1=2 2=2
Convolution conv 1 1 image out 0=1 1=1 5=1 6=2
"""
# The tag 0 of raw float weights, then 1 and 2, then the bias.
NCNN_BIN = np.array([0, 0x3F800000, 0x40000000, 0x3F000000], dtype="<u4").tobytes()


def _packed(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


MODELS = {
    "ncnn": (NCNN_PARAM, NCNN_BIN),
    "onnx": (
        _packed(
            "c-"
            "rG&7h<q#W#p3JV$IA=Oi$%vEazfO5@OCTEm2}|&d)0oVocW(=V0Vu0%Ar1MkmH{FAfHV273ku1_v!(h)|Lj3y^CcB@Z=3NQ_H_gH"
            "cF;3#bW*nP50cmJ4JsnlxOA6AKrE051SZkP;X"
        ),
    ),
    "mnn": (
        _packed(
            "c-n<hy-or_5dQW+?<B+!f{BF%F~m@Cgu@G9BZkV-H@JA`ouN<&!Crd{AHae~u<((5221gqy**tCiIaSp-"
            "P!s5W}5(x(1J%@MGXz?U>Aq9xwJH?MM`*gfLCJ0+cPmjE@h%c4Ek}Lj`~AC>ji-yhDqw5Wy2dk4dWo`C%qudlEVLjXcIMaFA=kcC"
            "H8Y2MRA(V7HPCxK-"
            ";Ew*SBdD@g9mBJ2W<GwUI;4FEqA^EA#gGwO#`gB|UeD1|jo4nRtoaR{KN8IogM#<9sdmJ@vMcr)u&zRv$ox^OgBt<q5d7=2ba$V@"
            "IpUaZbqzLhUU(5dNFwwM?Em=;@t^xb*rf>K{1P8K^U_$6Q4fmllzUlAVNGxKY@?15f91wXc*>KONPX7kn#bDQX-"
            "jo3rCz9;|%|XA<XX&R~3%#hYV6IQGmhtQa53b=n<t1Kk5KpU&@7_WKP?{YJL"
        ),
    ),
    "tflite": (
        _packed(
            "c-oy*&ubG=5S~po>6(T#V2CB;kb_WBS<@eiV4(#?6jG4lQCwoO+F-I9l1<JYJcyJYJoVro(4&8VC-KmOe}eysG0$(_o6V*+mnQJ#"
            "y`7!+&3rSnuS!HOpEkBjR3n=l%2Sa_u&q;7uW8@~@C0~e5#AG>0}WsmsAk~{e9d4FoZ5H>Y}g2xz~)%y3>Mn83}+pGA5%m>En_bd"
            "|8iLK$il|X#Hs={U=0}hgK;N#=e7N}%~3bf=SsrMK8~DquwMae$v+%Ll>4KUEw<Jm>~l1Pr)Oe2S4ufL1EL$id*APS!>IYD>mPMP"
            "uN4M(2qHS1<B0|%pJQ@FN5?0+23!YvoxmH6f~eE;y|F(ScEW&8<Sc95bRW2NN`9>Gpz-"
            "{$_BagSANg$;mIC^abfo~xKClDa676v=y=EsM(R+r1{Fa_sQVUDsaE{!cV>qq@pHPGn@C^>OWzLvBn7BEqQ&Hl?d@0jjy`D{#DjW"
            "JTzkfYZie2jxkMR(wT<)QV-Z1)T(Tv{`UdAuYRlr$Og%zm-yRjd~xOriI)^z5%Ij-"
            "0@EA`39%C<K8o;E&dey;pAx$lckM`q*>;CWnS&vOs%Md6@z<OYG;3)`cvKXfr5W0!lk)%IGC?$5NuI(UDoxpR81;~eMfnh{?T8|z"
            ")wtF6y$m{%L@`(rN8?9zGeT*{O29o!Yg{3*?!5&qpP^KWZzJ@c56lW8*l@%I<^;mb79V=t{|>%t7hx{kq}Qzo{fBY)U4pHdm$mxK"
            "Dnw;t)Pn^`v6(@SgLoN3P^_Ggu7|9{3$RH8j4@pymxO7Rk28;WeLA*=7h?A$$p-(IYn7V0MJuJAZ=*OV4~xA7giXnrPItF7Pt1E-"
            "DrdH"
        ),
    ),
}


def probe(destination: str) -> str:
    """Runs the convolution and returns the runtime's name and version.

    Raises EdgeError when the package is missing or the result is wrong, and whatever the runtime itself raises.
    """
    runtime = runtimes.adapter(destination)
    image = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in zip(runtime.FILES, MODELS[destination], strict=True):
            Path(folder, name).write_bytes(content)
        result = np.asarray(runtime.tiny(Path(folder), image)).ravel()
    expected = (image[0, 0] + 2 * image[0, 1] + 0.5).ravel()
    if not np.allclose(result, expected, rtol=1e-6, atol=0):
        raise EdgeError(f"a convolution gave {result.tolist()} where {expected.tolist()} is right")
    version: str = runtime.version()
    return version
