"""Function words of languages in Latin script: they carry no subject, so they are not searched for, and they tell which language a text is
in. Closed classes only (articles, pronouns, prepositions, conjunctions, auxiliaries), as grammars list them; never a noun or a full verb.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_WORDS: Final = {
    "en": """a about above after again against all am an and any are as at be because been before being below between both but by can
could d did do does doing don down during each few for from further had has have having he her here hers herself him himself his how i if
in into is it its itself just ll m me might more most must my myself no nor not now of off on once only or other our ours ourselves out
over own re s same shall she should so some such t than that the their theirs them themselves then there these they this those through to
too under until up us ve very was we were what when where which while who whom why will with would you your yours yourself yourselves""",
    "de": """ab aber alle allem allen aller alles als also am an andere anderen anderer auch auf aus bei beim bin bis bist da damit dann
das dass dein deine dem den denn der des dich die dies diese diesem diesen dieser dieses dir doch dort du durch ein eine einem einen einer
eines er es etwas euch euer fur gegen gewesen hab habe haben hat hatte hatten hier hin hinter ich ihm ihn ihnen ihr ihre ihrem ihren ihrer
im in indem ins ist jede jedem jeden jeder jedes kann kein keine keinem keinen keiner konnen konnte man manche mein meine mich mir mit muss
musste nach nicht nichts noch nun nur ob oder ohne sehr sein seine seinem seinen seiner selbst sich sie sind so solche soll sollte sondern
sonst uber um und uns unser unsere unter vom von vor war waren warst was weg weil welche welcher wenn wer werde werden wie wieder will wir
wird wirst wo wollen wurde wurden zu zum zur zwar zwischen""",
    "fr": """a ai aie as au aux avec avait avez avons c ce ces cet cette d dans de des donc dont du elle elles en es est et etait ete etes
etre eu eux fut ici il ils j je l la le les leur leurs lui ma mais me meme mes moi mon n ne ni nos notre nous on ont ou par pas pour qu
quand que quel quelle quelles quels qui quoi s sa sans se sera ses si soi soit sommes son sont sous suis sur t ta te tes toi ton tu un une
vos votre vous y""",
    "es": """a al algo alguien ante antes como con contra cual cuando de del desde donde durante e el ella ellas ellos en entre era eran
eres es esa esas ese eso esos esta estaba estan estas este esto estos estoy fue fueron ha han hasta hay he la las le les lo los mas me mi
mis mucho muy nada ni no nos nosotros o os otra otro para pero poco por porque que quien quienes se ser si sin sobre son su sus tambien
tanto te tiene tu tus un una uno unos y ya yo""",
    "it": """a ad agli ai al alla alle allo anche avere aveva c che chi ci come con cosa cui d da dagli dai dal dalla dalle dallo degli
dei del della delle dello di dov dove e ed era erano essere fra gli ha hai hanno ho i il in io l la le lei li lo loro lui ma mi mia mie
miei mio ne negli nei nel nella nelle nello no noi non nostra nostro o per perche piu quale quando quanto quella quelle quelli quello
questa queste questi questo se sei si sia siamo siete sono sta su sua sue sugli sui sul sulla sulle sullo suo suoi ti tra tu tua tuo un
una uno vi voi""",
    "pt": """a ao aos aquela aquele aquilo as ate com como da das de dela dele deles depois do dos e ela elas ele eles em entre era eram
essa essas esse esses esta estao estas estava este estes estou eu foi foram ha isso isto ja la lhe mais mas me mesmo meu meus minha muito
na nao nas nem no nos nossa nosso num numa o onde os ou para pela pelas pelo pelos por porque qual quando que quem se sem ser seu seus so
sua suas tambem te tem tinha tu tua um uma voce voces""",
    "nl": """aan al alles als altijd andere ben bij daar dan dat de der deze die dit doch doen door dus een eens en er ge geen geweest
haar had heb hebben heeft hem het hier hij hoe hun iemand iets ik in is ja je kan kon kunnen maar me meer men met mij mijn moet na naar
niet niets nog nu of om omdat onder ons ook op over reeds te tegen toch toen tot u uit uw van veel voor want waren was wat werd wezen wie
wil worden wordt zal ze zelf zich zij zijn zo zonder zou""",
    "sv": """alla allt att av blev bli blir da de dem den denna deras dess dessa det detta dig din dina ditt du dar efter ej eller en er
era ett for fran ha hade han hans har henne hennes hon honom hur i icke inom inte jag ju kan kunde man med mellan men mig min mina mitt mot
mycket ni nu nar nagon nagot och om oss pa sa sadan samma sedan sig sin sina sitt sjalv skulle som till under upp ut utan vad var vara vare
varfor varit vem vi vid vilken vilket vore at over""",
    "da": """af alle andet andre at begge blev blive bliver da de dem den denne der deres det dette dig din dine disse dit du efter eller
en end er et for fra ham han hans har havde have hende hendes her hos hun hvad hvem hver hvilken hvis hvor hvordan hvornar i ikke ind jeg
jer jo kunne man mange med meget men mig min mine mit mod ned noget nogle nu nar og ogsa om op os over pa selv sig sin sine sit skal
skulle som sadan thi til ud under var vi vil ville vor vaere vaeret""",
    "no": """alle andre at av bare begge ble blei bli blir da de deg dei deim deira den denne der dere deres det dette di din disse du
eg ein eit eller en enn er et ett etter for fordi fra ha hadde han hans har henne hennes her hos hun hva hvem hver hvilke hvilken hvis hvor
hvordan hvorfor i ikke inn jeg kan korleis kun kunne kva kvar man mange med medan meg men mi min mot mye na nar nei noe noen og ogsa om
opp oss over pa sa seg selv si sin sitt skal skulle som til uten var vart ved vi vil ville vore vaere vaert""",
    "fi": """ei eivat emme en enta ette ja jo joka jos jota kanssa keiden kenen kenet ketka kuin kuka kun me meidan meille meita mika
mikali minka mina minulla minun minut mita mutta myos ne nain nama niiden niin noin nuo nyt olemme olen olet olette oli olimme olin olisi
olit olivat olla olleet ollut on ovat se sen seka siella siina sille sina sinulla sinun sinut sita taas tai taman tama tata te teidan
tuo tuon tassa vaan vai vain vaikka viela voi heidan heita han hanella hanen hanet poikki eli""",
    "pl": """a aby ale bardzo bez bo by byc byl byla byli bylo bym ci cie co czy dla do gdy gdzie go i ich ile im innych ja jak jako je
jego jej jemu jest jestem jezeli juz kiedy kto ktora ktore ktorego ktory ktorych ktorzy lub ma maja mam mi mnie moj moja moze mozna mu my na
nad nam nami nas nasz nich nie niego niej nim no o od on ona one oni ono oraz pan po pod przed przez przy sa sam sie sobie ta tak takze
tam te tego tej ten to tobie tu tych tylko tym u w we wiec wlasnie wszystko z za ze zawsze""",
    "cs": """a aby ale ani ano asi az bez bude budem budou by byl byla byli bylo byt ci co coz do ho i ja jak jako je jeho jej jeji jejich
jen jeste ji jich jim jinak jine jsem jsi jsme jsou jste k kam kde kdo kdy kdyz ke ktera ktere ktereho kteri ktery ma mate me mezi mi mit
mne mnou muj muze my na nad nam nas nase ne nebo neni nez nic o od on ona oni ono pak po pod podle pokud pouze prave pred pres pri pro proc
proto protoze s se si sve svuj ta tak take takze tam tato te tedy ten tento teto ti tim to toho tohle tom tomu toto tu tuto ty u uz v vam
vas ve vice vsak vy z za ze zde""",
    "tr": """acaba ama ancak aslinda az bana bazi belki ben benden beni benim bile bir biri birkac biz bize bizi bizim bu buna bunda bundan
bunu bunun burada cok cunku da daha de defa degil diye eger en gibi hem hep hepsi her hic icin ile ise ki kim kime mi mu nasil ne neden
nerede nereye nicin niye o olan olarak oldu olsa olur ona ondan onlar onlari onu onun oysa sana sanki sen senden seni senin siz sizi sizin
sonra su suna sunu tum uzere var ve veya ya yani yok""",
    "ro": """a acea aceasta aceea acel acest aceste acesti acolo ai al ale am ar are as asa asta ati au avea avem ca cand care carei caror
cat catre ce cel ceva chiar cine cu cum da daca dar de deci din dintre doar dupa ea ei el ele era eram este esti eu fara fi fie fiecare
fost i ia iar il imi in insa intre isi iti la le li lor lui ma mai mea mei mele meu mi mie multe mult ne ni nici nu o or ori pana pe pentru
peste prin sa sai sale sau se si sunt suntem ta te ti tu tuturor un una unde unei unele unor unui va vi voi vor""",
    "hu": """a ahogy aki akik akkor alatt altal amely amelyek amelyet ami amit amig amikor arra arrol az azok azon azonban azt aztan azutan
azzal be belul ben benne cikk csak de e eddig egesz egy egyeb egyes ehhez ekkor el eleg ellen elott en ennek erre es ez ezek ezen ezert ezt
ezzel fel fele ha hanem hogy hogyan igen igy illetve ilyen is ismet itt jo jol kell keresztul ki kivul kozott kozul le legyen lehet lenne
lesz lett maga magat majd mar mas meg mely melyek mert mi mig miert mikor mint mintha minden mindig mit mivel most nagy ne neha nekem neki
nelkul nem o ok oket olyan ott ra s saja sem semmi sok szamara talan te tehat teljes ti tobb ugy ugyanis utan utolso vagy vagyok valaki
valami van vannak volna volt voltak voltam vele""",
}

FUNCTION_WORDS: Final[Mapping[str, frozenset[str]]] = {
    language: frozenset(words.split()) for language, words in _WORDS.items()
}
"""Language (ISO 639-1) to its words, without case and accents."""
